"""What the chat does, as tests that read like a specification, with real sockets and processes.

Run them:   python -m unittest                  (all of them, in this folder)
            python -m unittest -k nickname      (those whose name holds a word)

Whatever is expected has DEADLINE seconds to come. To know that something does not, a later line
is sent as a marker, and all that is heard until then is compared. The window is a real one:
without Tkinter or a screen its tests are skipped (Linux: xvfb-run python -m unittest).
"""
import collections
import contextlib
import doctest
import faulthandler
import gc
import os
import pathlib
import queue
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unicodedata
import unittest
from unittest import mock

import chat_client
import chat_server

try:
    import resource    # the limits of a process: Linux and macOS have it, Windows does not
except ImportError:
    resource = None

HERE = os.path.dirname(os.path.abspath(__file__))
HOST = "127.0.0.1"
DEADLINE = 10      # seconds that anything expected may take
PROMPT = "NICK Choose a nickname."
ONLINE = "* Online (2): Ada, Grace"
TOO_LONG = "* Not sent: a message may have at most 4096 bytes."
TIME_IS_UP = "* No nickname came within 0.2 seconds."
WHO = "Ada > /who\nAda < * Online (1): Ada"    # what ChatTest.play makes of it: Ada is alone
STOPPED = "* The server has stopped."
END = ""           # what Visitor.line returns when the server has closed the connection
LINUX = sys.platform == "linux"
posix_only = unittest.skipUnless(os.name == "posix", "Windows has no such signals")
linux_only = unittest.skipUnless(LINUX, "Linux alone tells in /proc what a process uses")


def setUpModule():
    # In the background of a script Ctrl+C is ignored, and what we start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if resource:    # macOS allows 256 open files; 150 visitors, each with two ends, need more
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with contextlib.suppress(ValueError):    # so many are not allowed
            resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))


################ Helpers
def wait_until(condition, problem=lambda: "what was waited for did not happen"):
    """Return once condition() is true. If it does not become so, fail and say problem()."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(problem())
        time.sleep(0.005)


def memory(pid):
    """Return how much memory a process ever used at once, in KiB."""
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read()).group(1))


def processor_time(pid):
    """Return how many seconds a process has computed until now."""
    with open(f"/proc/{pid}/stat") as stat:
        ticks = map(int, stat.read().rpartition(")")[2].split()[11:13])
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def in_threads(function, arguments):
    """Call the function once for each argument, all at the same time, and wait for them."""
    threads = [threading.Thread(target=function, args=(argument,)) for argument in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Visitor:
    """Somebody at the other end of a connection, who speaks the protocol by hand."""
    check = unittest.TestCase()
    check.maxDiff = None

    def __init__(self, port, host=HOST):
        self.socket = socket.create_connection((host, port), timeout=DEADLINE)
        self.reader = self.socket.makefile("rb")
        self.heard = collections.deque(maxlen=5)    # the last few lines

    def send(self, *lines):
        self.send_bytes("".join(line + "\n" for line in lines).encode())

    def send_bytes(self, data):
        self.socket.sendall(data)

    def line(self, expected="another line"):
        """Return the next line without its ending, or END."""
        try:
            line = self.reader.readline().decode()
        except ConnectionError:
            return END
        except OSError:    # the time is up; once it was, Python reads no more from a socket
            raise AssertionError(f"Nothing came within {DEADLINE} seconds. Expected: "
                                 f"{expected[:60]!r}. Before: {list(self.heard)}") from None
        if line and not line.endswith("\n"):
            raise AssertionError(f"a line without an ending: {line!r}")
        self.heard.append(line[:60])
        return line[:-1]

    def lines_until(self, last):
        """Return all lines up to and including this one."""
        lines = []
        while lines[-1:] != [last]:
            if lines[-1:] == [END]:
                raise AssertionError(f"The connection ended. Expected: {last!r}. "
                                     f"Heard before: {lines[-9:-1]}")
            lines.append(self.line(last))
        return lines

    def expect(self, *lines):
        """Assert that exactly these lines come next."""
        self.check.assertEqual([self.line(line) for line in lines], list(lines))

    def join(self, nickname):
        """Go into the room under this nickname."""
        self.expect(PROMPT)
        self.send(nickname)
        self.expect(f"* Welcome, {nickname}!")
        self.check.assertRegex(self.line(), rf"^\* Online .*[ :]{re.escape(nickname)}$")

    def finish(self):
        """Say that nothing more will be sent; what comes can still be heard."""
        self.socket.shutdown(socket.SHUT_WR)

    def close(self):
        self.reader.close()
        self.socket.close()

    def reset(self):
        """Vanish without a goodbye: SO_LINGER with 0 seconds sends a reset."""
        linger = struct.pack("ii" if os.name == "posix" else "hh", 1, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close()


class Program:
    """A Python program as a process of its own, which is killed if it lets a test wait.

    `checks`: Python's own, which show what is not closed, but take memory too; `paused`: nobody
    reads its log, which is what it writes to stderr, until it stops.
    """
    check = Visitor.check

    def __init__(self, *command, checks=True, paused=False, folder=HERE, stdin=subprocess.PIPE):
        python = [sys.executable, *["-X", "dev", "-W", "error"] * checks]
        self.process = subprocess.Popen(
            [*python, *command], cwd=folder, encoding="utf-8", errors="replace",
            stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # What it does not flush must not come.
            env={**os.environ, "PYTHONUNBUFFERED": "", "PYTHONIOENCODING": "utf-8"})
        self.log = ""
        self.log_thread = threading.Thread(target=self.read_log)
        self.resumed = threading.Event()
        if not paused:
            self.resumed.set()
        self.log_thread.start()

    def read_log(self):
        self.resumed.wait()
        for line in self.process.stderr:
            self.log += line

    def watch(self, wait):
        """Return what this function returns, which waits for the program."""
        watchdog = threading.Timer(DEADLINE, self.lose_patience)
        watchdog.start()
        result = wait()
        watchdog.cancel()
        watchdog.join()
        return result

    def lose_patience(self):
        """Kill the program, or a test could wait for ever."""
        self.log += f"\nKilled, because nothing came within {DEADLINE} seconds.\n"
        self.process.kill()

    def wait_for_log(self, text):
        wait_until(lambda: text in self.log, lambda: f"{text!r} is not in the log: {self.log}")

    def line(self):
        """Return the next line that it prints, without its ending, or END."""
        return self.watch(self.process.stdout.readline).rstrip("\n")

    def expect(self, *lines):
        """Assert that it prints exactly these lines next."""
        printed = [self.line() for _ in lines]
        if printed != list(lines):
            self.kill()    # which completes the log
            raise AssertionError(f"It printed {printed}, not {lines}. Errors: {self.log}")

    def wait(self):
        """Wait for its end, and return its status."""
        self.resumed.set()
        return self.watch(self.process.wait)

    def kill(self):
        """End it as a power failure does."""
        self.process.kill()
        self.wait()
        self.log_thread.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError, AttributeError):    # broken, or no pipe of ours
                pipe.close()


def script(name, setup=""):
    """Return how Python is told to run one of the scripts, after this code if there is any."""
    if setup:
        return ["-c", f"import os, sys, {name}\n{setup}\n{name}.main()"]
    return [f"{name}.py"]


class ServerProcess(Program):
    """chat_server.py as a program on a free port. `setup` is Python code that runs first."""
    def __init__(self, *options, setup="", **how):
        super().__init__(*script("chat_server", setup), "--port", "0", *options, **how)
        self.greeting = [self.line(), self.line()]
        found = re.search(r"listening on (\S+) port (\d+)", self.greeting[0])
        if not found:
            self.kill()
            raise AssertionError(f"The server did not start: {self.greeting} {self.log}")
        self.host, self.port = found.group(1), int(found.group(2))

    def stop(self, number=signal.SIGINT):
        """Stop it as Ctrl+C does, and see it end well. Return how many seconds that took."""
        if self.process.returncode is not None:
            return 0
        started = time.monotonic()
        if os.name == "posix":
            self.process.send_signal(number)
        else:
            self.process.terminate()
        status = self.wait()
        self.last_words = self.process.stdout.read()
        seconds = time.monotonic() - started
        self.kill()
        if os.name == "posix" and status or re.search("Traceback|Warning", self.log):
            raise AssertionError(f"The server ended with status {status}: {self.log}")
        return seconds


class ChatTest(unittest.TestCase):
    """Starts servers and visitors, and cleans up after each test."""
    maxDiff = None

    def setUp(self):
        # If a test hangs, show where.
        faulthandler.dump_traceback_later(60, exit=True, file=sys.__stderr__)
        self.addCleanup(faulthandler.cancel_dump_traceback_later)
        crashes = []    # an error that ends a thread of the server fails its test
        self.addCleanup(self.assertEqual, crashes, [], "a thread crashed")
        self.patch(threading, "excepthook", lambda args: crashes.append(repr(args.exc_value)))

    def patch(self, where, name, value):
        """Give something another value for this test."""
        patcher = mock.patch.object(where, name, value)
        patcher.start()
        self.addCleanup(patcher.stop)

    def start_server(self, host=HOST, rate=0):
        """Start a server in this process. Without a rate, one may say as much as one likes."""
        server = chat_server.ChatServer(host, 0, rate)
        self.run_server(server)
        self.addCleanup(self.stop_server, server)
        return server

    def run_server(self, server):
        server.start()
        server.accept_thread = threading.Thread(target=server.accept_connections)
        server.accept_thread.start()

    def stop_server(self, server):
        if server.accepting:
            server.accepting = False
            # This ends the wait in accept.
            socket.create_connection((server.host, server.port), DEADLINE).close()
            server.accept_thread.join()
            server.stop()

    def start_program(self, *options, **how):
        """Start a server as a program of its own."""
        program = ServerProcess(*options, **how)
        self.addCleanup(program.stop)
        return program

    def visit(self, server, nickname=""):
        """Return a new visitor, who is in the room if there is a nickname."""
        visitor = Visitor(server.port, server.host)
        self.addCleanup(visitor.close)
        if nickname:
            visitor.join(nickname)
        return visitor

    def fill_room(self, server, *nicknames):
        """Return visitors who are in the room and have heard each other join."""
        visitors = []
        for nickname in nicknames:
            newcomer = self.visit(server, nickname)
            for visitor in visitors:
                visitor.expect(f"* {nickname} joined")
            visitors.append(newcomer)
        self.people = dict(zip(nicknames, visitors))
        return visitors

    def room(self, *nicknames, rate=0):
        """Start a server in this process and return visitors who are in its room."""
        self.server = self.start_server(rate=rate)
        return self.fill_room(self.server, *nicknames)

    def newcomer(self, nickname=""):
        """Return one more visitor, who is in the room, or has been asked for a nickname."""
        self.people[nickname] = visitor = self.visit(self.server, nickname)
        if not nickname:
            visitor.expect(PROMPT)
        return visitor

    def play(self, dialogue):
        """Let those in the room talk.

        `Ada > one|two` sends two lines in one packet, `Ada < one|two` asserts that Ada hears
        them next, and `Ada <` that the server has closed her connection.
        """
        for step in dialogue.strip().splitlines():
            name, sign, text = re.match(r" *(\w+) ([<>]) ?(.*)", step).groups()
            lines = text.split("|")
            if sign == ">":
                self.people[name].send(*lines)
            else:
                self.people[name].expect(*lines)

    def client(self, nickname):
        """Return what the server in this process knows one of its visitors by."""
        with self.server.lock:    # a thread of a client may be faster than its entry
            clients = self.server.connected_clients
            return next(client for client in clients if client.nickname == nickname)

    def keep_sending(self, visitor, data):
        """Let a thread send these bytes again and again, until the connection ends."""
        def send():
            with contextlib.suppress(OSError):
                while True:
                    visitor.send_bytes(data)

        def end():
            with contextlib.suppress(OSError):    # it has ended already
                visitor.socket.shutdown(socket.SHUT_RDWR)
        thread = threading.Thread(target=send)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(end)


    def assert_options(self, connection):
        """Assert that small messages go at once, and that a vanished computer is noticed."""
        self.assertTrue(connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        self.assertTrue(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPALIVE", 30), ("TCP_KEEPINTVL", 10),
                            ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 60_000)):
            if hasattr(socket, name):
                found = connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                self.assertEqual(found, value, name)

    def meanwhile(self, function, *arguments):
        """Call it in a thread, as if at this very moment. A lock may make it wait."""
        thread = threading.Thread(target=function, args=arguments)
        thread.start()
        thread.join(0.1)


################ The protocol: lines
class LinesTest(ChatTest):
    def setUp(self):
        super().setUp()
        self.ada, self.grace = self.room("Ada", "Grace")

    def assert_heard(self, sent, *heard):
        """Assert that Grace hears exactly this from Ada when Ada sends these bytes."""
        self.ada.send_bytes(sent + b"marker\n")
        lines = self.grace.lines_until("Ada: marker")
        self.assertEqual(lines[:-1], [f"Ada: {text}" for text in heard])

    def send_pieces(self, *pieces):
        """Let Ada send these bytes in packets of their own, of which Grace hears nothing."""
        for piece in pieces:
            self.ada.send_bytes(piece)
            # This gives the server the time to read the piece.
            self.play(f"Grace > /who\nGrace < {ONLINE}")

    def test_a_sender_does_not_hear_itself(self):
        self.play("""
            Ada > hello
            Grace < Ada: hello
            Grace > good morning
            Ada < Grace: good morning""")

    def test_two_lines_in_one_packet_are_two_messages(self):
        self.assert_heard(b"one\ntwo\r\nthree\n", "one", "two", "three")    # a \r goes

    def test_a_line_may_come_in_several_packets(self):
        for line in ("hello", "é漢🙂"):
            self.send_pieces(*[bytes([byte]) for byte in line.encode()])
            self.assert_heard(b"\n", line)
        self.ada.send_bytes(b"one\ntw")
        self.grace.expect("Ada: one")
        self.assert_heard(b"o\n", "two")
        self.send_pieces(b"x" * 4096 + b"\r")
        self.assert_heard(b"\n", "x" * 4096)

    def test_a_last_line_without_an_ending_counts(self):
        self.ada.send_bytes(b"x" * 5000 + b"\none\nlast words")
        self.ada.finish()
        self.play(f"Grace < Ada: one|Ada: last words|* Ada left\nAda < {TOO_LONG}|")

    def test_empty_and_blank_lines_are_ignored(self):
        self.assert_heard(b"\n\r\n \n\t \n\x07\n\xe3\x80\x80\n")

    def test_a_line_may_hold_4096_bytes(self):
        longest, emoji = "x" * 4096, "🙂" * 1024
        sent = f"{longest}\n{longest}\r\n{emoji}\n".encode()
        self.assert_heard(sent, longest, longest, emoji)
        self.ada.send(longest + "x", longest + "x\r", "x" * 300_000)
        self.assert_heard(b"")
        self.play(f"Ada > /who\nAda < {TOO_LONG}|{TOO_LONG}|{TOO_LONG}|{ONLINE}")

    def test_a_line_that_is_too_long_stays_so_when_its_ending_comes_later(self):
        for start in (b"x" * 5000, b"x" * 4096 + b"\ry"):    # the server keeps only a part
            self.send_pieces(start)
            self.assert_heard(b"\n")
            self.ada.expect(TOO_LONG)

    def test_invalid_utf8_is_replaced(self):
        self.assert_heard(b"caf\xe9 \xff\xc3\n", "caf\ufffd \ufffd\ufffd")

    def test_what_controls_a_terminal_ends_a_line_or_turns_text_around_goes(self):
        for code in [*range(0x00, 0x09), *range(0x0b, 0x20), *range(0x7f, 0xa0),
                     *range(0x2028, 0x202f), *range(0x2066, 0x206a)]:
            self.assert_heard(f"a{chr(code)}b\n".encode(), "ab")

    def test_all_else_stays(self):
        texts = "  if x:    y ", "and/or", " /quit", "👩\u200d💻", "❤\ufe0f", "کتاب\u200cها"
        self.assert_heard("\n".join([*texts, "a\tb\n"]).encode(), *texts, "a b")

    def test_nobody_can_speak_as_somebody_else(self):
        self.assert_heard("Grace: I am Grace\n* Grace left\nhi\rGrace: hi\n"
                          "hi\u2028Grace: hi\u0085\n".encode(),
                          "Grace: I am Grace", "* Grace left", "hiGrace: hi", "hiGrace: hi")

    @linux_only
    def test_an_endless_line_takes_no_memory(self):
        program = self.start_program()
        ada = self.fill_room(program, "Ada", "Grace")[0]
        before = memory(program.process.pid)
        for _ in range(8):
            ada.send_bytes(b"x" * 1024 * 1024)
            self.assertLess(memory(program.process.pid) - before, 4096, "KiB more")
        self.play(f"Ada > |still here\nAda < {TOO_LONG}\nGrace < Ada: still here")


################ The protocol: nicknames
# The ends of the ranges of characters that nobody sees.
IGNORED = ("\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b\u180f\u200b\u200f\u2060\u206f"
           "\u2800\u3164\ufe00\ufe0f\ufeff\uffa0\ufff0\ufff8\U0001bca0\U0001bca3\U0001d173"
           "\U0001d17a\U000e0000\U000e0fff")


class NicknameTest(ChatTest):
    def choose(self, nickname):
        """Let a new visitor ask for a nickname. Return the visitor and the answer."""
        visitor = self.newcomer()
        visitor.send(nickname)
        return visitor, visitor.line()

    def test_a_nickname_that_keeps_the_rules_is_accepted(self):
        self.room()
        for sent, nickname in (
                ("x" * 20, "x" * 20), ("漢" * 20, "漢" * 20), ("y", "y"), ("Ada*/", "Ada*/"),
                ("\x07" * 30 + "Ada" + "\u202e" * 30, "Ada"), ("Young", "Young"),
                (" \t Ada  \t \u3000 Lovelace ", "Ada Lovelace"), ("👩\u200d💻", "👩\u200d💻")):
            with self.subTest(sent):
                self.assertEqual(self.choose(sent)[1], f"* Welcome, {nickname}!")

    def test_a_nickname_that_breaks_a_rule_is_refused_with_the_reason(self):
        self.room("Ada", "Straße", "Ade\u0301")
        for reason, nicknames in (
                ("at most 20 characters", "z" * 21 + "|" + "z" * 5000),
                ("1 visible character", "| |\x07|\u202e\x1b|\u200b|\u200d\ufe0f|\u2060"
                 "|\u2800|\u3164|\U0001d173"),
                ("no colon", "Ada:|:|a:b|a\uff1ab"),
                (r"not begin with \* or /", "*|* Ada|*Ada|/Ada|/who|\uff0aAda|\uff0fAda"
                 "|\u200b * Ada|\u200b /Ada"),
                ("You is", "you|You|YOU|\uff39\uff4f\uff55|Y\u200bou|\u200b you|Yo\U0001bca0u"),
                ("is called .+ already", "|".join(f"A{char}da" for char in IGNORED)),
                ("is called .+ already", "Ada|ada|ADA|\uff21\uff44\uff41|\u200dAda|  Ada  "
                 "|A\x07da|\u200b Ada|Ada \u200b|Ada\U0001d173|\ufff0Ada|STRASSE|Ad\u00e9")):
            for nickname in nicknames.split("|"):
                with self.subTest(nickname[:25]):
                    visitor, answer = self.choose(nickname)
                    self.assertRegex(answer, f"^NICK .*{reason}.* Choose another")
        visitor.send("Somebody")
        visitor.expect("* Welcome, Somebody!")

    def test_until_a_nickname_is_accepted_one_hears_nothing_and_is_not_in_the_room(self):
        self.room("Ada", "Grace")
        self.people["Bob"], _ = self.choose("ada")
        self.play("""
            Ada > hello
            Grace < Ada: hello
            Ada > /who
            Ada < * Online (2): Ada, Grace
            Bob > Bob
            Bob < * Welcome, Bob!|* Online (3): Ada, Grace, Bob
            Ada > hello Bob
            Bob < Ada: hello Bob""")

    def test_a_nickname_is_free_again_when_its_owner_has_left(self):
        self.room("Ada", "Grace")[0].close()
        self.play("Grace < * Ada left")
        self.newcomer("Ada")
        self.play("""
            Grace < * Ada joined
            Ada > /who
            Ada < * Online (2): Grace, Ada""")    # in the order of joining

    def test_of_fifty_who_want_one_nickname_at_the_same_moment_exactly_one_gets_it(self):
        self.room()
        for nickname in ("Ada", "Grace", "Edsger"):
            visitors = [self.newcomer() for _ in range(50)]
            with self.server.lock:    # all of them ask before the first one is in
                for visitor in visitors:
                    visitor.send(nickname)
            answers = [visitor.line()[:5] for visitor in visitors]
            self.assertEqual(collections.Counter(answers), {"NICK ": 49, "* Wel": 1})

    def test_to_join_a_full_room_takes_no_look_at_every_nickname(self):
        self.room(*map(str, range(30)))
        with mock.patch("unicodedata.normalize", wraps=unicodedata.normalize) as normalize:
            self.newcomer("Ada")
        self.assertLess(normalize.call_count, 10)

    def test_nicknames_that_are_hard_to_compare_slow_nobody_down(self):
        self.room("Ada", "Grace")
        for _ in range(5):
            self.keep_sending(self.newcomer(), ("\u0301\u0316" * 9200 + "\n").encode())
        seconds = []
        for _ in range(9):
            started = time.monotonic()
            self.play("Ada > hello\nGrace < Ada: hello")
            seconds.append(time.monotonic() - started)
        self.assertLess(sorted(seconds)[4], 0.05)

    def test_who_chooses_no_nickname_in_time_is_shown_out(self):
        self.patch(chat_server, "NICKNAME_TIMEOUT", 0.2)
        self.room("Ada")
        self.newcomer().expect(TIME_IS_UP, END)
        self.newcomer("Grace").send("hello")
        self.play("Ada < * Grace joined|Grace: hello")    # and nothing of the slow one

    def test_neither_single_bytes_nor_others_who_connect_make_the_time_longer(self):
        self.patch(chat_server, "NICKNAME_TIMEOUT", 0.2)
        self.room()
        slow = self.newcomer()
        with contextlib.suppress(OSError):    # it is closed
            for _ in range(1000):
                self.newcomer().close()
                slow.send_bytes(b"x")
        slow.expect(TIME_IS_UP, END)

    def test_nobody_hears_what_a_browser_says(self):
        self.room("Ada")
        for packets in ((b"GET / HTTP/1.1\r\nCookie: secret\r\n\r\n",),
                        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nI am a web page\r\n",),
                        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\nsecret\n",),
                        (b"GET /" + b"x" * 5000 + b" HTTP/1.1", b"\r\nHost: a\r\nCookie: b\n")):
            with self.subTest(packets[0][:20]):
                visitor = self.newcomer()
                for packet in packets:
                    visitor.send_bytes(packet)
                    self.play(WHO)    # gives the server the time to read the packet
                self.assertRegex("|".join(visitor.lines_until(END)), r"^(NICK [^|]*\|)*$")


################ The protocol: the room
class RoomTest(ChatTest):
    def test_the_welcome_comes_before_any_message(self):
        ada, = self.room("Ada")
        self.keep_sending(ada, b"hello\n" * 20)
        for number in range(20):
            visitor = self.newcomer(f"Visitor {number}")    # asserts welcome and list
            visitor.lines_until("Ada: hello")
            visitor.close()

    def test_joining_and_leaving_are_announced_exactly_once(self):
        self.room("Ada", "Bob")
        for leave in (Visitor.close, Visitor.reset, Visitor.finish,
                      lambda visitor: visitor.send("/quit")):
            leave(self.newcomer("Grace"))
            self.play("Ada < * Grace joined|* Grace left\nBob > marker\nAda < Bob: marker")

    def test_who_leaves_without_a_nickname_is_not_announced(self):
        self.room("Ada")
        for leave in (Visitor.finish, lambda visitor: visitor.send("/quit")):
            visitor = self.newcomer()
            leave(visitor)
            visitor.expect(END)
            self.play(WHO)

    def test_a_message_sent_right_before_closing_arrives(self):
        self.room("Ada")
        for _ in range(100):
            grace = self.newcomer("Grace")
            grace.send("last words")
            grace.close()
            self.play("Ada < * Grace joined|Grace: last words|* Grace left")

    def test_the_answer_to_who_arrives_after_the_sending_side_is_closed(self):
        self.room()
        for _ in range(20):
            ada = self.newcomer("Ada")
            ada.send("/who")
            ada.finish()
            self.play("Ada < * Online (1): Ada|")

    def test_a_list_never_contradicts_the_notice_before_it(self):
        self.room("Ada", "Grace")
        reply, grace = self.server.reply, self.client("Grace")

        def reply_late(client, line):    # while Grace tries to leave
            self.meanwhile(self.server.disconnect_client, grace)
            reply(client, line)
        self.patch(self.server, "reply", reply_late)
        self.play("Ada > /who\nAda < * Online (2): Ada, Grace|* Grace left")

    def test_nobody_leaves_while_a_message_is_posted_to_all(self):
        self.room("Ada", "Grace", "Bob")
        room = self.server.room

        def values():    # once, while Bob tries to leave
            self.server.room = room
            self.meanwhile(self.server.disconnect_client, self.client("Bob"))
            return list(room.values())
        self.server.room = mock.MagicMock(values=values)
        self.play("Ada > hello\nGrace < Ada: hello|* Bob left")

    def test_who_is_being_shown_out_cannot_join_any_more(self):
        self.room("Ada")
        nameless, client = self.newcomer(), self.client("")
        disconnect = self.server.disconnect_client

        def disconnect_late(client):    # while the nickname comes after all
            self.meanwhile(self.server.join_room, client, "Bob")
            disconnect(client)
        self.patch(self.server, "disconnect_client", disconnect_late)
        client.deadline = 0
        nameless.expect("* No nickname came within 60 seconds.", END)
        client.thread.join()
        self.play(WHO)

    def test_messages_before_quit_in_one_packet_arrive_and_those_after_it_do_not(self):
        self.room("Ada", "Grace", "Bob")
        self.play("""
            Ada > one|two|/quit|three
            Grace < Ada: one|Ada: two|* Ada left
            Ada <
            Bob > marker
            Grace < Bob: marker""")

    def test_an_unknown_command_is_answered_to_its_sender_alone(self):
        ada = self.room("Ada", "Grace")[0]
        for command in ("/dance", "/WHO", "/"):
            ada.send(f"{command} with me")
            self.assertIn(f"* Unknown command {command}. Commands: /who, /quit", ada.line())
        self.play("Ada > marker\nGrace < Ada: marker")

    def test_who_has_left_is_not_heard_any_more(self):
        self.room("Ada", "Grace")
        client = self.client("Grace")
        self.server.disconnect_client(client)
        self.server.handle_lines(client, [b"hello"])
        self.newcomer("Alan")
        self.play("Ada < * Grace left|* Alan joined")


################ The server: those who do not read
class SlowTest(ChatTest):
    def test_who_does_not_read_is_shown_out_and_nobody_waits(self):
        ada, grace, _ = self.room("Ada", "Grace", "Sleepy")    # Sleepy does not read any more
        slowest, heard, text = 0, [], "x" * 4090
        for _ in range(4000):    # the kernel keeps far less than that for one connection
            started = time.monotonic()
            ada.send(text)
            heard += grace.lines_until(f"Ada: {text}")
            slowest = max(slowest, time.monotonic() - started)
            if "* Sleepy left (too slow)" in heard:
                break
        ada.send("and on")
        heard += grace.lines_until("Ada: and on")
        notices = [line for line in heard if not line.startswith("Ada: ")]
        self.assertEqual(notices, ["* Sleepy left (too slow)"])
        self.assertLess(slowest, 1)    # second; a server that waits for Sleepy takes for ever
        self.play("Ada > /who\nAda < * Sleepy left (too slow)|* Online (2): Ada, Grace")

    def test_what_fits_only_in_part_counts_as_too_slow(self):
        sleepy, = self.room("Sleepy")
        client, sent = self.client("Sleepy"), 0
        with self.assertRaises(BlockingIOError):
            while sent < 10 ** 8:
                client.send_at_once(b"x" * 10_000)
                sent += 10_000
        self.server.disconnect_client(client)
        self.assertGreaterEqual(len(sleepy.reader.read()), sent)

    def test_nothing_follows_half_a_line_to_one_who_was_too_slow(self):
        sleepy, = self.room("Sleepy")
        client = self.client("Sleepy")
        with mock.patch.object(self.server, "disconnect_client"):
            self.server.deliver_to_client(client, [b"x" * 8 * 1024 * 1024])
            self.assertEqual(client.socket.fileno(), -1)    # closed at once
        self.assertEqual(sleepy.reader.read().strip(b"x"), b"")

    def test_a_reply_to_one_who_is_gone_harms_nobody(self):
        self.room("Ada", "Grace", "Bob")
        gone = self.client("Bob")
        self.server.disconnect_client(gone)
        self.server.disconnect_client(gone)    # as when two threads find out: announced once
        self.play("Bob <")
        wait_until(lambda: gone.socket.fileno() == -1)
        self.server.reply(gone, "* late")    # as when Bob's own thread is still busy
        self.play("Ada > hello\nGrace < * Bob left|Ada: hello")


class SlowWithoutDontwaitTest(SlowTest):
    """The same, as it goes on Windows."""
    def setUp(self):
        super().setUp()
        self.patch(chat_server.Client, "MSG_DONTWAIT", 0)


################ The server: many who talk
class CrowdTest(ChatTest):
    def test_forty_who_talk_at_once_lose_nothing_and_all_hear_one_order(self):
        nicknames = [f"Visitor {number}" for number in range(40)]
        messages = [f"message {number}" for number in range(25)]
        listener, *talkers = self.room("Listener", *nicknames)
        in_threads(lambda talker: [talker.send(message) for message in messages], talkers)
        heard = [listener.line() for _ in range(40 * 25)]
        for nickname, talker in zip(nicknames, talkers):
            own = [f"{nickname}: {message}" for message in messages]
            self.assertEqual([line for line in heard if line in own], own)
            others = [line for line in heard if line not in own]
            self.assertEqual([talker.line() for _ in others], others)

    def test_ten_who_paste_much_at_the_same_moment_show_nobody_out(self):
        program = self.start_program("--quiet", checks=False)
        visitors = [self.visit(program, f"Visitor {number}") for number in range(20)]
        for visitor in visitors[:10]:
            self.keep_sending(visitor, (b"x" * 3999 + b"\n") * 39)
        end, heard = time.monotonic() + 1, []

        def read(visitor):
            while time.monotonic() < end:
                heard.append(visitor.line())
        in_threads(read, visitors)
        self.assertEqual([line for line in heard if line == END or line.endswith("slow)")], [])

    def test_what_is_too_fast_is_spread_out_and_nothing_is_lost(self):
        ada, grace, flooder = self.room("Ada", "Grace", "Flooder", rate=100)
        started = time.monotonic()
        flooder.send(*map(str, range(300)))
        arrivals, lines = [], []
        while len(lines) < 301:
            if len(lines) == 220:
                ada.send("may I?")
            lines.append(grace.line())
            arrivals.append(time.monotonic() - started)
        place = lines.index("Ada: may I?")
        self.assertLess(place, 270)                # Ada does not wait until the flood is over
        del lines[place], arrivals[place]
        self.assertEqual(lines, [f"Flooder: {number}" for number in range(300)])
        self.assertLess(arrivals[199], 0.9)        # two seconds' worth passes at once,
        self.assertGreater(arrivals[299], 0.9)     # the rest in the time that it takes


################ The server: its sockets, threads and errors
class ErrorTest(ChatTest):
    def test_a_vanished_computer_is_noticed_and_slow_readers_have_256_kib(self):
        self.room("Ada")
        connection = self.client("Ada").socket
        self.assert_options(connection)
        with socket.socket() as another:    # Linux doubles what it is asked for
            another.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * 1024)
            size = another.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self.assertEqual(connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), size)

    def test_a_socket_that_takes_no_options_costs_nobody_anything(self):
        self.room("Ada")
        with self.assertLogs(level="INFO") as log:
            with mock.patch("socket.socket.setsockopt", side_effect=OSError):
                self.newcomer("Grace")
            self.play("Ada < * Grace joined")
            wait_until(lambda: log.output)
        self.assertEqual(log.output, ["INFO:root:Grace joined"])

    def test_an_error_in_sending_is_that_of_one_client_alone(self):
        self.room("Ada", "Grace")
        for error in (OSError, ValueError, MemoryError):
            visitor = self.newcomer("Bob")
            self.client("Bob").send_at_once = mock.Mock(side_effect=error)
            self.play("Ada > hello\nGrace < * Bob joined|Ada: hello|* Bob left")
            visitor.expect(END)

    def test_who_is_reset_while_the_server_makes_them_wait_leaves_with_the_next_message(self):
        ghost = self.room("Ada", "Ghost", rate=chat_server.RATE)[1]
        ghost.send_bytes(b"\n" * 30 + b"marker" + b"\n" * 32_000)
        self.play("Ada < Ghost: marker")
        ghost.reset()
        self.play("Ada > hello\nAda < * Ghost left")

    def test_the_log_tells_a_broken_connection_and_who_left(self):
        self.room()
        for nickname, said in (("Ada", r"Ada: \[.*Ada left$"),
                               ("", r"Somebody without a nickname: \[.* peer$")):
            with self.assertLogs(level="INFO") as log:
                visitor, client = self.newcomer(nickname), self.client(nickname)
                visitor.reset()
                client.thread.join()
            self.assertRegex(" ".join(log.output), said)

    def test_out_of_threads_it_logs_once_each_time_and_the_server_goes_on(self):
        self.room("Ada")
        error = RuntimeError("can't start new thread")
        with self.assertLogs(level="ERROR") as log:
            for _ in range(2):
                with mock.patch.object(threading.Thread, "start", side_effect=error):
                    for visitor in [self.visit(self.server) for _ in range(3)]:
                        visitor.expect(END)
                self.newcomer("Bob").send("hello", "/quit")
                self.play("Ada < * Bob joined|Bob: hello|* Bob left")
        self.assertEqual(log.output, [f"ERROR:root:A client could not connect: {error}"] * 2)

    def test_out_of_memory_for_the_very_first_one_it_logs_that_and_goes_on(self):
        with self.assertLogs(level="ERROR") as log:
            with mock.patch("socket.socket.accept", side_effect=MemoryError):
                self.room()
                wait_until(lambda: log.output)
        self.newcomer("Ada")

    def test_stop_leaves_no_thread_alive_and_the_server_can_start_again(self):
        before = set(threading.enumerate())
        self.room("Ada")
        nameless = self.newcomer()
        with mock.patch.object(self.server, "disconnect_client", lambda _: time.sleep(0.1)):
            self.stop_server(self.server)    # while a thread needs some time to end
        self.assertEqual(set(threading.enumerate()) - before, set())
        self.play(f"Ada < {STOPPED}|")
        nameless.expect(STOPPED, END)
        self.run_server(self.server)
        self.fill_room(self.server, "Ada", "Grace")


################ The program: starting
class StartTest(ChatTest):
    def test_the_command_that_it_prints_works_as_it_stands(self):
        hosts = [HOST, "localhost"]
        if LINUX:    # elsewhere only 127.0.0.1 is there without being set up
            hosts.append("127.0.1.1")
        with contextlib.suppress(OSError):    # this computer has no ::1
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
            hosts.append("::1")
        for host in hosts:
            with self.subTest(host):
                program = self.start_program("--host", host)
                command = r"[Oo]nly this.* python chat_client\.py --port (\d+) --host (\S+)"
                self.assertRegex(program.greeting[1], command)
                self.assertIn("--host 0.0.0.0", program.process.stdout.readline())
                ada = Visitor(*re.search(command, program.greeting[1]).groups())
                self.addCleanup(ada.close)
                ada.join("Ada")

    def test_open_to_the_network_it_prints_the_address_of_this_computer(self):
        for host in ("0.0.0.0", "0"):
            program = self.start_program("--host", host)
            self.assertRegex(program.greeting[1], rf"--port {program.port} --host (?!0)\S")
        with mock.patch("chat_server.socket.socket") as udp:
            udp_socket = udp.return_value.__enter__.return_value
            udp_socket.getsockname.return_value = ("192.0.2.7", 9)
            said = chat_server.how_to_join("0.0.0.0", 7500)
            self.assertTrue(said.endswith("python chat_client.py --port 7500 --host 192.0.2.7"))
            self.assertIn("SOCK_DGRAM", str(udp.call_args))    # its connect sends nothing
            self.assertRegex(chat_server.how_to_join("192.0.2.1", 1), r"--host 192\.0\.2\.1$")
            udp_socket.connect.side_effect = OSError
            self.assertRegex(chat_server.how_to_join("0.0.0.0", 7500), "--host .*ipconfig")

    def test_what_makes_no_sense_is_said_in_one_line(self):
        other = socket.create_server((HOST, 0))
        self.addCleanup(other.close)
        port = other.getsockname()[1]
        for options, status, said in (
                (f"--port {port}", 1, rf"\A.*\b{port}\b.*\n\Z"),
                # This is nobody's address (RFC 5737); of the next, bind raises no OSError.
                ("--port 65535 --host 203.0.113.1", 1, r"\A.*203\.0\.113\.1.*\n\Z"),
                ("--port 0 --host é..b", 1, r"\A.*\.\.b.*\n\Z"),
                ("--port 65536", 2, "error: a port"), ("--port -1", 2, "error: a port"),
                ("--port 0 --rate -1", 2, "rate"), ("--port x", 2, "error: ")):
            with self.subTest(options):
                program = Program("chat_server.py", *options.split())
                self.addCleanup(program.kill)
                self.assertEqual((program.line(), program.wait()), (END, status))
                program.kill()    # which completes the log
                self.assertRegex(program.log, said)
                self.assertNotIn("Traceback", program.log)


################ The program: its log
class LogTest(ChatTest):
    def chat(self, *options, **how):
        """Let somebody join, speak and leave. Return what the server logged."""
        program = self.start_program(*options, **how)
        self.fill_room(program, "Grace", "Ada")
        refused = self.visit(program)
        refused.send("Ada", "/quit")
        refused.lines_until(END)
        self.play("Ada > hello|/quit\nGrace < Ada: hello|* Ada left\nGrace > /quit\nGrace <")
        program.stop()
        return program.log

    def test_the_log_shows_joins_messages_and_departures_with_the_time(self):
        logged = re.findall(r"(?m)^\d\d:\d\d:\d\d (.+)$", self.chat())
        self.assertEqual(sorted(logged), ["Ada joined", "Ada left", "Ada: hello",
                                          "Grace joined", "Grace left"])

    def test_a_slow_console_gets_all_of_it_before_the_program_ends(self):
        slow = "chat_server.logging.StreamHandler.flush = lambda _: chat_server.time.sleep(0.2)"
        self.assertEqual(self.chat(setup=slow).count("\n"), 5)

    def test_quiet_logs_none_of_it(self):
        self.assertEqual(self.chat("--quiet"), "")

    def test_a_paused_console_does_not_stop_the_room(self):
        program = self.start_program("--rate", "0", paused=True)
        ada, grace = self.fill_room(program, "Ada", "Grace")
        text = "x" * 4000
        for _ in range(200):    # several times what a pipe holds
            ada.send(text)
            grace.expect(f"Ada: {text}")
        program.stop()
        if os.name == "posix":    # on Windows, to stop it is to cut off its log
            self.assertEqual(program.log.count(f"Ada: {text}"), 200)


################ The program: its limits
class LimitsTest(ChatTest):
    @unittest.skipUnless(resource, "Windows cannot limit the number of open files")
    def test_out_of_file_descriptors_it_logs_once_and_the_room_goes_on(self):
        program = self.start_program(setup="import resource\n"
                                     "resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))")
        self.visit(program, "Bob").send("/quit")
        # Python 3.8 on Linux opens a library when its first thread ends: now, while it can.
        program.wait_for_log("Bob left")
        self.fill_room(program, "Ada", "Grace")
        crowd = [self.visit(program) for _ in range(30)]
        program.wait_for_log("could not connect")
        before, end = LINUX and processor_time(program.process.pid), time.monotonic() + 0.5
        self.play("Ada > hello\nGrace < Ada: hello")
        wait_until(lambda: time.monotonic() > end)    # the server tries again every 0.1 s
        if LINUX:    # where one can see that it waits in between
            self.assertLess(processor_time(program.process.pid) - before, 0.2)
        self.assertEqual(program.log.count("could not connect"), 1)
        for visitor in crowd:
            visitor.close()
        self.visit(program, "Alan")
        self.play("Ada < * Alan joined")


################ The program: stopping
@posix_only
class StopTest(ChatTest):
    def test_everybody_hears_that_the_server_stops_and_the_port_is_free_at_once(self):
        program = self.start_program()
        for number in (signal.SIGINT, signal.SIGTERM):
            visitors = [self.visit(program, f"Visitor {number}") for number in range(30)]
            self.assertLess(program.stop(number), 2)
            for visitor in visitors:
                self.assertNotIn(" left", "".join(visitor.lines_until(STOPPED)))
                visitor.expect(END)
            program = self.start_program("--port", str(program.port))

    def test_a_second_ctrl_c_changes_nothing(self):
        program = self.start_program(setup="""import os, signal
stop = chat_server.ChatServer.stop
def stop_twice(server):
    os.kill(os.getpid(), signal.SIGINT)
    stop(server)
chat_server.ChatServer.stop = stop_twice""")
        ada = self.visit(program, "Ada")
        program.stop()
        ada.expect(STOPPED, END)
        self.assertIn("The chat server has stopped.", program.last_words)

    def test_neither_a_nameless_visitor_nor_a_flood_delays_the_end(self):
        program = self.start_program("--rate", "1")
        nameless, flooder = self.visit(program), self.visit(program, "Flooder")
        nameless.expect(PROMPT)
        self.keep_sending(flooder, b"hello\n" + (b"x" * 4000 + b"\n") * 100)
        program.wait_for_log("Flooder: hello")    # the next line must wait for 15 seconds
        self.assertLess(program.stop(), 2)
        nameless.expect(STOPPED, END)


################ The client: its connection
# Where a server listens that nobody has started.
Address = collections.namedtuple("Address", "host port")


class RawServer:
    """A server without a protocol: it takes one connection, and does with it what talk says."""
    host = HOST

    def __init__(self, talk, buffer=0):
        self.listener = socket.create_server((HOST, 0))
        self.listener.settimeout(DEADLINE)
        if buffer:    # bytes that the kernel keeps for a server that does not read
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.serve, args=(talk,))
        self.thread.start()

    def serve(self, talk):
        with contextlib.suppress(OSError):    # nobody came, or the client has left
            connection, address = self.listener.accept()
            with connection:
                connection.settimeout(DEADLINE)
                talk(connection)

    def stop(self):
        with contextlib.suppress(OSError):
            # This ends the wait in accept.
            socket.create_connection((HOST, self.port), DEADLINE).close()
        self.thread.join()
        self.listener.close()


def until_closed(connection):
    """Read until the client closes. As a server, this one says nothing."""
    while connection.recv(65536):
        pass


def saying(*pieces):
    """Return a talk that sends each of these pieces as a packet, and then only listens."""
    def talk(connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.01)    # so that it becomes a packet of its own
        until_closed(connection)
    return talk


class ClientCase(ChatTest):
    """Starts clients and what they connect to, and cleans up after each test."""
    def start_raw_server(self, talk, **how):
        server = RawServer(talk, **how)
        self.addCleanup(server.stop)
        return server

    def start_client(self, server, *options, **how):
        """Start the client as a program, which connects to this server."""
        client = ClientProcess("--host", server.host, "--port", str(server.port),
                               *options, **how)
        self.addCleanup(client.kill)
        return client

    def free_port(self):
        """Return a port on which nobody listens."""
        with socket.create_server((HOST, 0)) as listener:
            return listener.getsockname()[1]

    def set(self, **constants):
        """Give constants of the client other values for this test."""
        for name, value in constants.items():
            self.patch(chat_client, name, value)


class ConnectionTest(ClientCase):
    def connect(self, server, nickname="Ada"):
        """Return a client that connects to this server."""
        client = chat_client.ChatClient(server.host, server.port, nickname)
        client.start()
        self.addCleanup(client.close, DEADLINE)
        return client

    def hear(self, client, seconds=DEADLINE):
        """Return what comes next from a client: a line or an error. None: nothing came."""
        try:
            return client.incoming.get(timeout=seconds)
        except queue.Empty:
            return None

    def expect(self, client, *lines):
        """Assert that exactly these lines come next from a client."""
        self.assertEqual([self.hear(client) for _ in lines], list(lines))

    def join(self):
        """Return Ada, a client that is in a room, and Grace, a visitor, who is there, too."""
        server = self.start_server()
        grace = self.visit(server, "Grace")
        ada = self.connect(server)
        self.expect(ada, "* Welcome, Ada!", "* Online (2): Grace, Ada")
        grace.expect("* Ada joined")
        return ada, grace

    def assert_fails(self, server, reason, nickname="Ada", kind=chat_client.ChatError):
        """Assert that an attempt to join ends with this error, and the connection with it."""
        client = self.connect(server, nickname)
        error = self.hear(client)
        self.assertRegex(str(error), reason)
        self.assertIs(type(error), kind)
        client.thread.join(DEADLINE)    # which closes the connection
        self.assertFalse(client.thread.is_alive())

    def test_it_joins_sends_and_after_a_long_silence_still_receives(self):
        self.set(JOIN_TIMEOUT=0.4)
        ada, grace = self.join()
        ada.send_message("hello")
        grace.expect("Ada: hello")
        self.assertIsNone(self.hear(ada, 0.5))
        grace.send("good morning")
        self.expect(ada, "Grace: good morning")

    def test_a_refused_nickname_carries_the_reason_and_ends_the_connection(self):
        server = self.start_server()
        grace = self.visit(server, "Grace")
        self.assert_fails(server, "^Somebody here is called Grace already", "Grace",
                          kind=chat_client.NicknameRefused)
        wait_until(lambda: len(server.connected_clients) == 1)
        self.connect(server, " Ada\nLovelace ")    # white space is one line all the same
        grace.expect("* Ada Lovelace joined")

    def test_a_message_of_4096_bytes_is_sent_and_a_longer_one_is_not(self):
        ada, grace = self.join()
        for text in ("x" * 4097, "🙂" * 1025):
            with self.assertRaisesRegex(chat_client.ChatError, f"4096.*{len(text.encode())}"):
                ada.send_message(text)
        ada.send_message("🙂" * 1024)
        ada.send_message("caf\udce9")    # what Python makes of a byte that is no UTF-8
        grace.expect("Ada: " + "🙂" * 1024, "Ada: caf?")

    def test_a_server_that_vanished_is_noticed_and_small_messages_do_not_wait(self):
        client, _ = self.join()
        self.assert_options(client.socket)
        self.assertEqual(client.TCP_OPTIONS, chat_server.Client.TCP_OPTIONS)

    def test_a_server_that_asks_for_no_nickname_is_heard_and_what_could_harm_is_removed(self):
        unsafe = "\r\0\x0c\x1b\x1f\x7f\x9f\u2028\u202e\u2066\u2069"
        half_characters = [bytes([byte]) for byte in "* é漢🙂\n".encode()]
        client = self.connect(self.start_raw_server(saying(
            f"Hi\r\none{unsafe}two\ncaf".encode() + b"\xe9\n", *half_characters)))
        self.expect(client, "Hi", "onetwo", "caf\ufffd", "* é漢🙂")

    def test_why_it_could_not_connect_is_said(self):
        def hang_up(connection):
            connection.sendall(b"NICK Who?\n")
            connection.recv(1)    # What is not read makes the end of the connection a reset.
        port = self.free_port()
        for address, reason in (
                (Address("", port), "^The server is empty"),
                (Address(HOST, 65536), "^A port is a number from 1 to 65535"),
                (Address(HOST, port), f"^Nobody answers at {HOST} port {port}"),
                (Address("no.invalid", port), "^There is no computer called no.invalid"),
                # No name server is asked for this one.
                (Address("a..b", port), "^There is no computer called a..b"),
                (self.start_raw_server(hang_up), "^The connection to the server is lost")):
            self.assert_fails(address, reason)

    def test_a_server_that_does_not_answer_in_time_is_given_up_whatever_it_dribbles(self):
        self.set(JOIN_TIMEOUT=0.2)
        for pieces in ([], [b"NICK Who?\n"], [b"x"] * 300):
            started = time.monotonic()
            server = self.start_raw_server(saying(*pieces))
            self.assert_fails(server, f"^{HOST} port {server.port} says nothing")
            self.assertLess(time.monotonic() - started, 2)

    def test_a_name_server_that_answers_late_lets_nobody_in_afterwards(self):
        self.set(JOIN_TIMEOUT=0.1)
        server, given_up = self.start_server(), threading.Event()
        grace = self.visit(server, "Grace")
        create_connection = socket.create_connection

        def connect_late(*arguments):
            given_up.wait(DEADLINE)
            return create_connection(*arguments)
        self.patch(socket, "create_connection", connect_late)
        client = self.connect(server)
        self.assertRegex(str(self.hear(client)), "says nothing")
        given_up.set()
        client.thread.join(DEADLINE)
        grace.send("/who")
        grace.expect("* Online (1): Grace")

    def test_the_end_of_the_connection_is_told_once(self):
        client = self.connect(self.start_raw_server(
            lambda connection: connection.sendall(b"Hi\nlast words")))
        self.expect(client, "Hi", "last words")
        self.assertRegex(str(self.hear(client)), "lost")
        self.assertIsNone(self.hear(client, 0.05))
        with self.assertRaisesRegex(chat_client.ChatError, "^Not sent: .*lost"):
            client.send_message("hello")

    def test_an_endless_line_comes_in_pieces(self):
        client = self.connect(self.start_raw_server(saying(b"x" * 200_000)))
        piece = self.hear(client)
        self.assertIsNotNone(piece, "nothing came")
        self.assertLessEqual(len(piece), 65536)

    def test_to_close_is_to_wait_until_the_server_has_read_all(self):
        heard, leave = [], threading.Event()

        def talk(connection):
            connection.sendall(b"Hi\n" + b"unread " * 1000)
            with connection.makefile("rb") as file:
                heard.extend(file)    # until the client says that nothing more comes
            leave.wait(DEADLINE)
            heard.append("closed")
        client = self.connect(self.start_raw_server(talk))
        self.expect(client, "Hi")
        client.send_message("last words")
        client.close(0.1)    # seconds, and not for ever
        self.assertTrue(client.thread.is_alive(), "It does not wait for the server.")
        threading.Timer(0.1, leave.set).start()
        client.close()
        self.assertEqual(heard, [b"last words\n", "closed"])


################ The client: the terminal
class ClientProcess(Program):
    """chat_client.py as a program, through pipes. `setup` is Python code that runs first."""
    def __init__(self, *options, setup="", **how):
        super().__init__(*script("chat_client", setup), *options, **how)

    def type(self, *lines):
        print(*lines, sep="\n", file=self.process.stdin, flush=True)

    def expect_end(self, status, output="", errors=""):
        """Assert that it ends by itself after printing this. errors: a regular expression."""
        ended = self.wait()
        printed = self.process.stdout.read()
        self.kill()
        self.check.assertEqual((ended, printed), (status, output), f"\nErrors: {self.log}")
        self.check.assertRegex(self.log, rf"\A{errors}\Z")

    def press_ctrl_c(self):
        """Send SIGINT until it ends: Python may miss one just before it waits for input."""
        for _ in range(DEADLINE):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
                return


class TerminalTest(ClientCase):
    NOWHERE = Address(HOST, 7500)    # for a client that does not come as far as to connect
    NO_TKINTER = """
import importlib
sys.modules["tkinter"] = None
importlib.reload(chat_client)"""
    ASCII = """
for stream in (sys.stdin, sys.stdout):
    stream.reconfigure(encoding="ascii")"""
    BROKEN_PIPE = """
reader, writer = os.pipe()
os.close(reader)
sys.stdout = open(writer, "w")"""

    def start_terminal(self, server, *options, **how):
        return self.start_client(server, "--text", *options, **how)

    def chat(self, rate=0, setup=""):
        """Return Grace, a visitor, and Ada, a terminal, who are in one room."""
        server = self.start_server(rate=rate)
        grace = self.visit(server, "Grace")
        ada = self.start_terminal(server, "--nickname", "Ada", setup=setup)
        ada.expect("* Welcome, Ada!", "* Online (2): Grace, Ada")
        grace.expect("* Ada joined")
        return grace, ada

    def copy_alone(self, name):
        """Return a new folder, in which there is nothing but this script."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        shutil.copy(os.path.join(HERE, name), folder)
        return folder

    def test_the_first_line_is_the_nickname_the_others_are_sent_and_what_comes_is_printed(self):
        server = self.start_server()
        grace = self.visit(server, "Grace")
        ada = self.start_terminal(server)
        ada.type("Ada", "hello")
        ada.expect("Nickname: * Welcome, Ada!", "* Online (2): Grace, Ada")
        grace.expect("* Ada joined", "Ada: hello")
        grace.send("good morning")
        ada.expect("Grace: good morning")

    def test_each_program_works_when_copied_alone_into_an_empty_folder(self):
        server = self.start_program(folder=self.copy_alone("chat_server.py"))
        folder = self.copy_alone("chat_client.py")
        ada = self.start_terminal(server, "--nickname", "Ada", folder=folder)
        ada.expect("* Welcome, Ada!", "* Online (1): Ada")

    def test_a_refused_nickname_in_a_pipe_ends_it_and_nobody_joins(self):
        server = self.start_server()
        grace = self.visit(server, "Grace")
        poet = self.start_terminal(server)
        poet.type("Grace", "The first verse", "The second")
        poet.expect_end(1, "Nickname: ", "Somebody here is called Grace already.*\n")
        grace.send("/who")
        grace.expect("* Online (1): Grace")

    @posix_only
    def test_a_refused_nickname_at_a_terminal_is_asked_for_again(self):
        import pty    # which Windows does not have
        server = self.start_server()
        grace = self.visit(server, "Grace")
        ours, theirs = pty.openpty()
        with open(ours, "wb", 0) as keyboard, open(theirs, "rb") as terminal:
            ada = self.start_terminal(server, "--nickname", "Grace", stdin=terminal)
            ada.expect("Somebody here is called Grace already. Choose another.")
            keyboard.write(b"Ada\n")
            ada.expect("Nickname: * Welcome, Ada!")
            keyboard.write(b"/quit\n")
            grace.expect("* Ada joined", "* Ada left")

    def test_a_closed_full_or_broken_input_or_output_is_no_traceback(self):
        for setup in ("sys.stdin = None", "sys.stdin = open(os.devnull, 'w')",
                      "sys.stdout = None", "sys.stdout = open('/dev/full', 'w')",
                      self.BROKEN_PIPE):
            if "/dev" in setup and not os.path.exists("/dev/full"):
                continue    # Linux alone has it
            server = self.start_raw_server(saying(b"Hi\n"))
            ada = self.start_terminal(server, "--nickname", "Ada", setup=setup)
            self.assertEqual(ada.wait(), 1, setup)
            ada.kill()
            self.assertLessEqual(ada.log.count("\n"), 1, ada.log)

    def test_what_cannot_be_sent_or_shown_does_not_end_the_chat(self):
        grace, ada = self.chat(setup=self.ASCII)
        ada.type("x" * 4097, "é")
        self.assertRegex(ada.line(), "^Not sent: ")
        grace.expect("Ada: \ufffd\ufffd")
        grace.send("🙂")
        ada.expect("Grace: ?")

    def test_quit_ends_it_and_the_last_message_arrives(self):
        for text in ("/quit", "/quit for today"):
            grace, ada = self.chat()
            ada.type(" /quit is a command", "last words", text, "too late")
            grace.expect("Ada:  /quit is a command", "Ada: last words", "* Ada left")
            ada.expect_end(0)

    @posix_only
    def test_ctrl_c_ends_it(self):
        grace, ada = self.chat()
        ada.type("last words")
        grace.expect("Ada: last words")
        ada.press_ctrl_c()
        grace.expect("* Ada left")
        ada.expect_end(0)

    def test_the_end_of_the_input_instead_of_a_nickname_ends_it(self):
        ada = self.start_terminal(self.NOWHERE)
        ada.process.stdin.close()
        ada.expect_end(0, "Nickname: ")

    @posix_only
    def test_ctrl_c_before_the_server_has_answered_ends_it_at_once(self):
        connected = threading.Event()

        def talk(connection):
            connected.set()
            until_closed(connection)
        ada = self.start_terminal(self.start_raw_server(talk), "--nickname", "Ada")
        connected.wait(DEADLINE)
        ada.press_ctrl_c()
        ada.expect_end(0)

    def test_the_last_message_before_the_end_of_the_input_always_arrives(self):
        server = self.start_server()
        grace = self.visit(server, "Grace")
        self.start_terminal(server, "--nickname", "Ada", setup="""
import io
for number in range(50):
    sys.stdin = io.TextIOWrapper(io.BytesIO(b"last words %d" % number))
    chat_client.chat_in_terminal(sys.argv[2], int(sys.argv[4]), "Ada")
sys.exit()""")
        for number in range(50):
            grace.expect("* Ada joined", f"Ada: last words {number}", "* Ada left")

    def test_all_of_a_long_input_arrives_at_the_rate_of_the_server(self):
        grace, ada = self.chat(rate=100, setup="chat_client.CLOSE_TIMEOUT = 0.1")
        ada.type(*map(str, range(250)))    # longer than the window would wait: half a second
        ada.process.stdin.close()
        for number in range(250):
            grace.expect(f"Ada: {number}")
            if number == 230:
                grace.send("hello")    # she is still there to hear it
        grace.expect("* Ada left")
        ada.expect_end(0, "Grace: hello\n")

    def test_the_end_of_the_connection_ends_it_although_the_input_is_open(self):
        server = self.start_raw_server(lambda connection: connection.sendall(b"last words\n"))
        ada = self.start_terminal(server, "--nickname", "Ada")
        ada.expect_end(1, "last words\nThe connection to the server is lost.\n")

    def test_why_it_could_not_join_is_said_in_one_line(self):
        ada = self.start_terminal(Address("é..b", 7500), "--nickname", "Ada")
        ada.expect_end(1, errors="There is no computer called .*\n")

    def test_the_terminal_needs_no_tkinter_and_without_it_the_window_says_what_to_do(self):
        self.chat(setup=self.NO_TKINTER)
        window = self.start_client(self.NOWHERE, setup=self.NO_TKINTER)
        window.expect_end(1, errors=".*python3-tk.*--text\n")

    @unittest.skipUnless(LINUX, "needs X11, where a screen can be missing")
    def test_without_a_screen_the_window_says_what_to_do(self):
        window = self.start_client(self.NOWHERE, setup="os.environ['DISPLAY'] = ''")
        window.expect_end(1, errors=".*--text\n")

    def test_help_shows_the_default_of_each_option_of_both_programs(self):
        for name, defaults in (("chat_server", ["127.0.0.1", "7500", "20", "False"]),
                               ("chat_client", ["127.0.0.1", "7500", "", "False"])):
            program = Program(*script(name), "--help")
            self.addCleanup(program.kill)
            text = " ".join(program.watch(program.process.stdout.read).split())
            self.assertEqual(re.findall(r"\(default: (.*?)\)", text), defaults)


################ The client: the window
class WindowCase(ClientCase):
    """Opens real windows and uses them as a person does."""
    window = None

    @classmethod
    def setUpClass(cls):
        if not chat_client.tkinter:
            raise unittest.SkipTest("needs Tkinter, which this Python does not have")
        cls.tkinter = chat_client.tkinter
        try:
            root = cls.tkinter.Tk()
        except cls.tkinter.TclError as error:
            raise unittest.SkipTest(f"needs a screen: {error}")
        cls.system = root.tk.call("tk", "windowingsystem")    # x11, win32 or aqua
        root.destroy()
        cls.enter_keys = ["Return"]
        if cls.system == "x11":    # elsewhere Tk cannot press the Enter of the number pad
            cls.enter_keys.append("KP_Enter")

    def setUp(self):
        super().setUp()
        # What belongs to Tk must not be collected by another thread: that ends the process.
        gc.disable()
        self.addCleanup(gc.enable)
        self.errors = []    # an error in what a key or a timer calls fails the test
        self.addCleanup(self.assertEqual, self.errors, [], "an error in the window")

        def report(root, *error):
            self.errors.append("".join(traceback.format_exception(*error)))
        self.patch(self.tkinter.Tk, "report_callback_exception", report)

    def open(self, server, nickname=""):
        """Open the window. With a nickname it is in the room soon, or the dialog is shown."""
        self.window = chat_client.ChatWindow(server.host, server.port, nickname)
        self.addCleanup(self.close)
        self.root = self.window.root
        self.listbox, self.entry = self.window.message_listbox, self.window.entry_field
        self.button = self.window.send_button
        self.pump(lambda: self.dialog() or self.root.state() == "normal")

    def close(self):
        """Close the window as a window manager does, if it is still open."""
        if self.window and self.is_open():
            self.root.tk.eval(self.root.protocol("WM_DELETE_WINDOW"))
        if self.window:    # which Python 3.8 keeps, though it is destroyed
            for alarm in self.root.tk.splitlist(self.root.tk.call("after", "info")):
                self.root.after_cancel(alarm)
        self.window = self.root = self.listbox = self.entry = self.button = None
        gc.collect()

    def is_open(self):
        try:
            return self.root.winfo_exists()
        except self.tkinter.TclError:
            return False

    def chat(self, *lines, server=None):
        """Let Ada, a window, and Grace, a visitor, be in one room, where Grace says this."""
        server = server or self.start_server()
        self.grace = self.visit(server, "Grace")
        self.people = {"Ada": self, "Grace": self.grace}    # for play()
        self.open(server, "Ada")
        self.grace.expect("* Ada joined")
        self.see("* Welcome, Ada!", "* Online (2): Grace, Ada")
        if lines:
            self.hear(*lines)

    def pump(self, condition):
        """Let the window work until condition() is true."""
        def check():
            self.root.update()
            return condition()
        wait_until(check, self.shown)

    def shown(self):
        """Return what the window shows, for the message of a test that fails."""
        dialog = self.dialog() and f"typed {self.typed()}, said {self.status()!r}"
        return (f"Instead: title {self.root.title()!r}, entry {self.entry.get()!r}, "
                f"dialog: {dialog}, last rows {self.rows()[-9:]}")

    def see(self, *lines):
        """Let the window work until it shows these lines at the end."""
        self.pump(lambda: [row[7:] for row in self.rows()[-len(lines):]] == list(lines))

    def hear(self, *lines):
        """Let Grace say this, and the window work until it shows the last line."""
        self.grace.send(*lines)
        self.see(f"Grace: {lines[-1]}")

    def see_title(self, title):
        self.pump(lambda: self.root.title() == title)

    def focus(self, widget):
        """Give the keyboard to a widget, even without a window manager, and again if needed."""
        self.pump(lambda: self.root.focus_displayof() == widget or widget.focus_force())

    def press(self, widget, *keys):
        """Press keys, called as Tk calls them, while a widget has the keyboard."""
        self.focus(widget)
        for key in keys:
            widget.event_generate(f"<{key}>")

    def send(self, *lines):
        """Put each of these into the entry and press Enter."""
        for line in lines:
            self.entry.delete(0, "end")
            self.entry.insert(0, line)
            self.press(self.entry, "Return")

    expect = see    # send and expect are what play() calls

    def rows(self):
        return list(self.listbox.get(0, "end"))

    def texts(self):
        """Return the messages, of which each fits into a row, without their times."""
        for row in self.rows():
            self.assertRegex(row, r"^\d\d:\d\d  \S")
        return [row[7:] for row in self.rows()]

    def assert_at_end(self):
        self.assertEqual(self.listbox.yview()[1], 1)

    def dialog(self):
        """Return the window of the dialog, or None if there is none to be seen."""
        for child in self.root.winfo_children():
            if child.winfo_class() == "Toplevel" and child.state() != "withdrawn":
                return child

    def parts(self, kind):
        """Return the widgets of one kind in the dialog."""
        form, = self.dialog().winfo_children()
        return [part for part in form.winfo_children() if part.winfo_class() == kind]

    def typed(self):
        """Return what the fields of the dialog hold: nickname, server, port."""
        return [field.get() for field in self.parts("TEntry")]

    def status(self):
        """Return what the dialog says, if it can be seen."""
        label = self.parts("TLabel")[-1]
        return str(label["text"]) if label.winfo_ismapped() else ""

    def fill_in(self, *values, key="Return"):
        """Fill the first fields of the dialog, and press Enter or a key in the last of them."""
        field = self.dialog()
        for field, value in zip(self.parts("TEntry"), values):
            field.delete(0, "end")
            field.insert(0, value)
        self.press(field, key)


class DialogTest(WindowCase):
    def test_it_asks_for_the_nickname_knows_the_rest_and_enter_opens_the_window(self):
        server = self.start_server()
        for enter in self.enter_keys:
            self.open(server)
            self.assertEqual(self.root.state(), "withdrawn")
            self.assertEqual(self.typed(), ["", HOST, str(server.port)])
            self.pump(lambda: self.dialog().focus_lastfor() == self.parts("TEntry")[0])
            self.fill_in("Ada", key=enter)
            self.see("* Welcome, Ada!", "* Online (1): Ada")
            self.assertIsNone(self.dialog())
            self.assertEqual((self.root.state(), self.root.title()), ("normal", "Chat - Ada"))
            self.assertEqual(self.root.winfo_class(), "Chat")    # to a window manager
            self.close()

    def test_it_says_what_is_wrong_and_keeps_what_was_typed_and_the_hands_where_they_are(self):
        server = self.start_server()
        self.open(server)
        for host, port, reason in (
                ("", str(server.port), "The server is empty"),
                (HOST, "\u00b2", "A port is a number"),
                (HOST, str(self.free_port()), "Nobody answers")):
            self.fill_in("Ada", host, port)
            self.pump(lambda: self.status().startswith(reason))
            self.assertEqual(self.typed(), ["Ada", host, port])
            self.assertEqual(self.root.state(), "withdrawn")
            self.assertEqual(self.dialog().focus_lastfor(), self.parts("TEntry")[2])

    def test_one_types_over_a_refused_nickname(self):
        server = self.start_server()
        self.visit(server, "Grace")
        self.open(server)
        self.fill_in("Grace", HOST, str(server.port))
        self.pump(lambda: "called Grace already" in self.status())
        self.assertEqual(self.typed()[0], "Grace")
        self.press(self.dialog().focus_lastfor(), *"Eve")
        self.parts("TButton")[0].invoke()
        self.see("* Welcome, Eve!", "* Online (2): Grace, Eve")

    def test_while_it_connects_the_dialog_lives_and_enter_is_one_attempt(self):
        attempts, end = [], threading.Event()

        def talk(connection):
            attempts.append(connection)
            until_closed(connection)
            attempts.append("closed")
            end.wait(DEADLINE)    # before it closes, too
        server = self.start_raw_server(talk)
        threads = threading.active_count()
        self.addCleanup(end.set)
        self.open(server, "Ada")    # the dialog is shown when it takes long
        for _ in range(3):
            self.fill_in("Ada")
        button, = self.parts("TButton")
        self.assertTrue(button.instate(["disabled"]))
        self.assertEqual(self.status(), "Connecting…")
        self.pump(lambda: attempts)
        self.assertEqual(threading.active_count(), threads + 2)    # the client and its timer
        started = time.monotonic()
        self.fill_in(key="Escape")
        self.assertFalse(self.is_open())
        self.assertLess(time.monotonic() - started, 0.5)
        wait_until(lambda: attempts[1:] == ["closed"])

    def test_with_a_nickname_from_the_command_line_it_only_says_what_is_wrong(self):
        address = Address(HOST, self.free_port())
        self.open(address, "Ada")
        self.pump(lambda: self.status().startswith("Nobody answers"))
        self.assertEqual(self.typed(), ["Ada", HOST, str(address.port)])
        self.close()
        self.open(self.start_server(), "Ada")
        self.see("* Welcome, Ada!", "* Online (1): Ada")
        self.window.dialog.show()    # as an alarm does a moment later
        self.assertIsNone(self.dialog())


class ReadingTest(WindowCase):
    SENTENCE = "A sentence of words that are kept whole, " * 6
    LONG = [SENTENCE, "x" * 500, SENTENCE + "y" * 500 + " and more", "漢字仮名" * 60,
            "🙂🎉👍" * 50,
            "some words 🙂, 漢字仮名漢字仮名漢字仮名漢字仮名漢字仮名漢字仮名漢字仮名 " * 9]

    def test_each_message_has_the_time_in_front(self):
        before = time.strftime("%H:%M")
        self.chat("hello")
        times = (before, time.strftime("%H:%M"))
        self.assertIn(self.rows()[-1], [f"{now}  Grace: hello" for now in times])

    def test_own_messages_and_notices_have_colours_of_their_own(self):
        self.chat("hello", "* not a notice")
        self.send(self.SENTENCE)
        colours = [str(self.listbox.itemcget(index, "foreground"))
                   for index in range(self.listbox.size())]
        notice, mine = colours[0], colours[4]
        self.assertEqual(len({"", notice, mine}), 3)
        self.assertGreater(len(colours), 6)
        self.assertEqual(colours, [notice, notice, "", ""] + [mine] * (len(colours) - 4))

    def test_at_the_end_it_follows_and_scrolled_up_it_stays_until_one_writes(self):
        self.set(MAX_MESSAGES=100)
        self.chat(*map(str, range(99)))
        self.assert_at_end()
        self.listbox.yview(50)
        self.root.update()
        top = self.listbox.get("@0,0")    # the row on top of those that can be seen
        self.hear(*map(str, range(99, 120)))
        self.assertEqual(self.listbox.get("@0,0"), top)
        self.assertEqual(self.texts(), [f"Grace: {number}" for number in range(20, 120)])
        self.send("one's own")
        self.assert_at_end()
        self.hear("the last")
        self.assert_at_end()

    def longest_wait(self, lines, last):
        """Return how long a key waits at most, in seconds, while Grace says these lines."""
        waits = []

        def one_key():
            """Press a key in 5 ms, and let the window work until it is answered."""
            self.root.after(5, lambda: self.entry.event_generate("<a>", when="tail"))
            alarm = self.root.after(DEADLINE * 1000, self.root.quit)
            started = time.monotonic()
            self.root.mainloop()
            waits.append(time.monotonic() - started)
            self.root.after_cancel(alarm)
            return self.listbox.get("end").endswith(last)
        self.focus(self.entry)
        self.entry.bind("<Key>", lambda event: self.root.quit())
        self.grace.send(*lines)
        wait_until(one_key, lambda: f"a key waited {max(waits)} seconds. {self.shown()}")
        self.assertGreater(len(waits), 20, f"so few keys were answered, in {waits} seconds")
        return max(waits)

    def test_10000_lines_at_once_never_keep_it_from_answering_a_key_and_the_last_5000_are_there(
            self):
        self.chat(server=self.start_program("--rate", "0", "--quiet", checks=False))
        for attempt in range(3):    # a machine that is busy may need a second one
            lines = [f"{attempt} {number}" for number in range(10_000)]
            wait = self.longest_wait(lines, lines[-1])
            self.assertEqual(self.texts(), [f"Grace: {line}" for line in lines[5000:]])
            if wait < 0.1:    # seconds
                break
        self.assertLess(wait, 0.1)

    def resize(self, width, height=400):
        """Resize the window, and wait until its rows have been wrapped again."""
        count = self.listbox.size()
        self.root.geometry(f"{width}x{height}")
        self.pump(lambda: self.root.winfo_width() == width)
        self.pump(lambda: self.listbox.size() != count)

    def test_long_messages_are_wrapped_to_the_width_and_again_when_it_changes(self):
        self.chat(*self.LONG, "marker")
        measure = self.tkinter.font.nametofont("TkTextFont").measure
        for width in (1000, 700, 400):
            self.resize(width)
            self.assertEqual(self.listbox.xview(), (0, 1))    # nothing is beyond the edge
            # A row that begins with a space belongs to the message above it.
            messages = re.split(r"\n(?! )", "\n".join(self.rows()))
            for text, message in zip(self.LONG, messages[2:]):
                said = "".join(message.split())[5:]    # without the time
                self.assertEqual(said, "".join(f"Grace: {text}".split()))
                full = message.split("\n")[:-1]
                self.assertGreater(min(map(measure, full)), self.listbox.winfo_width() / 2)
            self.assertEqual(messages[2].split()[2:], self.SENTENCE.split())    # none is cut

    def test_resized_it_stays_at_the_end_or_what_is_on_top_stays_on_top(self):
        self.chat(*[f"{number} {self.SENTENCE}" for number in range(30)], "marker")
        for size in ((400, 300), (900, 600), (400, 260)):
            self.resize(*size)
            self.assert_at_end()
        tenth, = [index for index, row in enumerate(self.rows()) if "Grace: 10 " in row]
        self.listbox.yview(tenth)
        self.hear("more")    # by then the window has noticed it
        for width in (900, 400):
            self.resize(width)
            self.assertIn("Grace: 10 ", self.listbox.get("@0,0"))

    def test_messages_are_copied_whole_and_without_the_wrapping(self):
        text = self.SENTENCE.strip()
        self.chat(text, "hello", "hello", "🙂")
        end = self.listbox.size()
        self.assertGreater(end, 7)
        others = "Grace: hello\nGrace: hello\nGrace: 🙂"
        for rows, copied in (([3], f"Grace: {text}"), ([2, 3, 4], f"Grace: {text}"),
                             (range(end - 3, end), others),
                             ([], others)):    # then the clipboard stays as it is
            self.listbox.selection_clear(0, "end")
            for row in rows:
                self.listbox.selection_set(row)
            self.focus(self.listbox)
            self.listbox.event_generate("<<Copy>>")
            self.assertEqual(self.root.clipboard_get(), copied)

    def test_only_the_thread_of_the_window_touches_a_widget(self):
        calls = []

        def notice(frame, event, function):    # is called for all that other threads call
            owner = getattr(function, "__self__", None)
            if event == "c_call" and type(owner).__name__ == "tkapp":
                calls.append(function.__name__)
        threading.setprofile(notice)
        self.addCleanup(threading.setprofile, None)
        self.chat("hello", server=self.start_program())
        self.play("Ada > good morning\nGrace < Ada: good morning")
        self.close()
        self.assertEqual(calls, [])


class WritingTest(WindowCase):
    def test_one_types_presses_enter_or_the_button_and_types_on(self):
        self.chat()
        self.pump(lambda: self.root.focus_lastfor() == self.entry)    # from the start
        for key in self.enter_keys:
            self.press(self.entry, *"Hi", "space", *"all", key)
            self.play("Grace < Ada: Hi all\nAda < You: Hi all")
        self.entry.insert(0, "more")
        self.press(self.button, "Return")    # a click gives it the keyboard, too
        self.play("Grace < Ada: more\nAda < You: Hi all|You: more")
        self.pump(lambda: self.root.focus_get() == self.entry)
        self.assertEqual((self.entry.get(), str(self.button["text"])), ("", "Send"))

    def test_pasted_lines_are_a_message_each_and_blank_ones_none(self):
        self.chat()
        self.send("", " ")
        self.root.clipboard_clear()
        self.root.clipboard_append("one\n\ntwo\r\n \t \nthree\n")
        self.focus(self.entry)
        self.entry.event_generate("<<Paste>>")
        self.press(self.entry, "Return")
        self.grace.expect("Ada: one", "Ada: two", "Ada: three")
        self.assertEqual(self.texts()[2:], ["You: one", "You: two", "You: three"])

    def test_what_is_too_long_stays_with_all_after_it_and_a_notice_says_why(self):
        self.chat()
        self.send("one\n" + "x" * 4097 + "\ntwo")
        self.grace.expect("Ada: one")
        self.assertEqual(self.entry.get(), "x" * 4097 + "\ntwo")
        self.assertRegex(" ".join(self.rows()[2:]), r"You: one .*  \* Not sent: .*4096")
        self.assertNotIn("xxx", " ".join(self.rows()))
        self.send("x" * 4096)
        self.grace.expect("Ada: " + "x" * 4096)
        self.assertEqual(self.entry.get(), "")

    def test_who_is_answered_and_quit_closes_the_window(self):
        for text in ("/quit", "/quit for today"):
            self.chat()
            self.play(f"""
                Ada > /who
                Ada < * Welcome, Ada!|* Online (2): Grace, Ada|* Online (2): Grace, Ada
                Ada > {text}
                Grace < * Ada left""")
            self.assertFalse(self.is_open())
            self.close()

    def test_a_server_that_does_not_read_never_stops_the_window(self):
        heard, reading = [], threading.Event()

        def talk(connection):
            connection.sendall(b"Hi\n")
            reading.wait(DEADLINE)
            with connection.makefile("r") as file:
                heard.extend(file)
        self.open(self.start_raw_server(talk, buffer=4096), "Ada")
        self.addCleanup(reading.set)
        self.see("Hi")
        self.window.client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sent, started = [], time.monotonic()
        while not self.entry.get():
            sent.append(f"{len(sent)} {'x' * 3000}\n")
            self.send(sent[-1])
            self.assertLess(len(sent), 1000)
        self.assertLess(time.monotonic() - started, 5)
        self.assertEqual(self.entry.get(), sent[-1].strip())
        self.assertIn("  * Not sent: the server does not listen", self.rows()[-1])
        reading.set()
        self.pump(lambda: self.press(self.entry, "Return") or not self.entry.get())
        self.close()
        self.assertEqual(heard, sent)


class KeyboardTest(WindowCase):
    def test_what_is_typed_on_the_messages_goes_to_the_entry(self):
        self.chat()
        self.listbox.selection_set(0)
        self.press(self.listbox, "h")
        self.assertEqual(self.entry.get(), "h")
        self.pump(lambda: self.root.focus_get() == self.entry)
        self.press(self.listbox, "BackSpace", "Control-c")    # which are no letters
        self.assertEqual(self.entry.get(), "h")
        self.patch(chat_client.sys, "platform", "darwin")
        self.press(self.listbox, "Command-j", "i")    # where Cmd types nothing
        self.assertEqual(self.entry.get(), "hi")
        self.assertEqual(self.root.clipboard_get(), "* Welcome, Ada!")

    def test_control_a_selects_all_of_an_entry(self):
        if self.system == "aqua":
            self.skipTest("on macOS it is Cmd+A, which is Tk's own")
        self.chat()
        self.entry.insert(0, "one two")
        self.press(self.entry, "Control-a")
        self.assertEqual(self.entry.selection_get(), "one two")

    def test_keys_scroll_the_messages_from_the_entry_and_arrows_start_at_the_newest(self):
        self.chat(*map(str, range(100)))
        self.press(self.entry, "Prior")
        self.assertLess(self.listbox.yview()[1], 1)
        self.press(self.entry, "Next")
        self.assert_at_end()
        self.press(self.listbox, "Up")
        self.assertGreaterEqual(self.listbox.curselection()[0], self.listbox.size() - 2)


class LookTest(WindowCase):
    def test_colours_have_a_contrast_of_4_5_on_white_and_on_black(self):
        def linear(part):    # as WCAG 2 defines it
            if part <= 0.03928:
                return part / 12.92
            return ((part + 0.055) / 1.055) ** 2.4
        for colour in chat_client.MessageList.COLOURS.values():
            red, green, blue = [linear(part / 255) for part in bytes.fromhex(colour[1:])]
            luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
            self.assertGreaterEqual(1.05 / (luminance + 0.05), 4.5)
            self.assertGreaterEqual((luminance + 0.05) / 0.05, 4.5)

    def test_the_second_rows_of_a_message_begin_under_its_text(self):
        self.chat("some words " * 30, "marker")
        measure = self.tkinter.font.nametofont("TkTextFont").measure
        first, second = self.rows()[2:4]
        indent = measure(second) - measure(second.lstrip())
        self.assertAlmostEqual(indent, measure(first[:7]), delta=measure(" ") / 2 + 1)

    def test_very_much_text_is_wrapped_again_in_half_a_second(self):
        self.chat()
        messages = self.window.message_list
        messages.add([f"{number} " + "x" * 4090 for number in range(600)])
        self.assertIn("  599 xxx", " ".join(self.rows()))
        for width in (700, 500, 600):    # a machine that is busy may need a second try
            messages.width = width
            started = time.monotonic()
            messages.rewrap(width)
            seconds = time.monotonic() - started
            if seconds < 0.5:
                break
        self.assertLess(seconds, 0.5)

    def test_an_error_does_not_stop_the_looking(self):
        self.chat()
        menu_is_open = mock.Mock(side_effect=KeyError("popdown"))    # some make Tk do this
        with mock.patch.object(self.root, "focus_displayof", menu_is_open):
            self.pump(lambda: self.errors)
        self.errors.clear()
        self.hear("hello")

    def test_on_windows_the_program_says_that_it_knows_high_resolutions(self):
        import ctypes
        no_screen = mock.Mock(side_effect=self.tkinter.TclError("none"))
        self.patch(self.tkinter, "Tk", no_screen)
        with mock.patch.object(ctypes, "OleDLL", create=True) as library:
            library.return_value.SetProcessDpiAwareness.side_effect = OSError    # set already
            with self.assertRaisesRegex(chat_client.ChatError, "no screen.*--text"):
                chat_client.open_window(HOST, 7500, "")
        library.assert_called_once_with("shcore")
        library().SetProcessDpiAwareness.assert_called_once_with(1)


class UnreadTest(WindowCase):
    def test_without_the_focus_what_comes_is_counted_until_the_window_has_it_again(self):
        server = self.start_server()
        self.chat("seen", server=server)
        self.focus(self.entry)
        self.see_title("Chat - Ada")
        other = self.tkinter.Tk()    # another program's window, for all that Tk knows
        self.addCleanup(other.destroy)
        self.pump(lambda: other.update() or not self.root.focus_displayof()
                  or other.focus_force())
        self.hear("one", "two", "* three")
        self.visit(server, "Bob")
        self.see("Grace: * three", "* Bob joined")
        self.see_title("(3) Chat - Ada")
        self.hear("four")
        self.see_title("(4) Chat - Ada")
        self.focus(self.entry)
        self.see_title("Chat - Ada")

    def test_scrolled_up_what_comes_is_counted_until_one_is_at_the_end_again(self):
        self.chat(*map(str, range(100)))
        self.focus(self.entry)
        self.see_title("Chat - Ada")
        self.listbox.yview(10)
        self.hear("one", "two")
        self.see_title("(2) Chat - Ada")
        self.listbox.yview("end")
        self.see_title("Chat - Ada")


class ReconnectTest(WindowCase):
    LOST = "* The connection to the server is lost."

    def lose(self):
        """Chat until the server stops."""
        self.server = self.start_server()
        self.chat("hello", server=self.server)
        self.entry.insert(0, "half a sent")
        self.stop_server(self.server)
        self.see("Grace: hello", STOPPED, self.LOST)

    def test_a_lost_connection_is_said_and_all_text_stays(self):
        self.lose()
        self.press(self.entry, "Return")
        self.see("* Welcome, Ada!", "* Online (2): Grace, Ada", "Grace: hello", STOPPED,
                 self.LOST, "* Not sent: the connection to the server is lost.")
        self.assertEqual(self.entry.get(), "half a sent")
        self.assertEqual(str(self.button["text"]), "Reconnect")
        self.see_title("Chat - Ada (connection lost)")
        self.send("/quit")
        self.assertFalse(self.is_open())

    def test_reconnect_asks_again_and_goes_on_in_the_same_window(self):
        self.lose()
        self.button.invoke()
        self.assertEqual(self.typed(), ["Ada", HOST, str(self.server.port)])
        self.fill_in()
        self.pump(lambda: self.status().startswith("Nobody answers"))
        server = self.start_server()
        self.grace = self.visit(server, "Grace")
        self.fill_in("Ada L.", HOST, str(server.port))
        self.see(self.LOST, "* Welcome, Ada L.!", "* Online (2): Grace, Ada L.")
        self.assertIsNone(self.dialog())
        self.see_title("Chat - Ada L.")
        self.assertEqual(str(self.button["text"]), "Send")
        self.button.invoke()
        self.grace.expect("* Ada L. joined", "Ada L.: half a sent")
        self.hear("welcome back")

    def test_reconnect_twice_brings_the_one_dialog_to_the_front(self):
        self.lose()
        self.button.invoke()
        self.pump(self.dialog().winfo_viewable)
        self.root.lift()
        self.button.invoke()
        self.pump(lambda: self.root.tk.call("wm", "stackorder", self.dialog(), "isabove", "."))

    def test_escape_in_the_dialog_leaves_the_window_which_closes_with_it(self):
        self.lose()
        for _ in range(2):
            self.button.invoke()
            self.fill_in(key="Escape")
            self.assertIsNone(self.dialog())
        self.see(self.LOST)
        self.button.invoke()
        self.window.on_closing()
        self.assertFalse(self.is_open())


class ClosingTest(WindowCase):
    # As soon as the program shows its window, or without a nickname the dialog, it does this.
    SOON = """
class Window(chat_client.ChatWindow):
    def __init__(self, *args):
        super().__init__(*args)
        self.root.after(0, self.soon)
    def soon(self):
        shown = self.root if "--nickname" in sys.argv else self.dialog.window
        shown.wait_visibility()
        {}
chat_client.ChatWindow = Window"""
    CLOSE = "shown.tk.eval(shown.protocol('WM_DELETE_WINDOW'))"    # as a window manager does

    def start_window(self, *options, soon):
        """Start the client as a program, and Grace, who is in the room."""
        server = self.start_server()
        self.grace = self.visit(server, "Grace")
        return self.start_client(server, *options, setup=self.SOON.format(soon))

    def test_closing_the_window_or_the_dialog_ends_the_program(self):
        window = self.start_window("--nickname", "Ada", soon=self.CLOSE)
        self.grace.expect("* Ada joined", "* Ada left")
        window.expect_end(0)
        self.start_window(soon=self.CLOSE).expect_end(0)

    @posix_only
    def test_ctrl_c_in_the_terminal_ends_the_program(self):
        window = self.start_window("--nickname", "Ada", soon="print('open', flush=True)")
        window.expect("open")
        window.press_ctrl_c()
        self.grace.expect("* Ada joined", "* Ada left")
        window.expect_end(0)

    def test_the_last_message_before_closing_always_arrives(self):
        server = self.start_server()
        grace = self.visit(server, "Grace")
        for number in range(8):
            self.open(server, "Ada")
            self.see("* Welcome, Ada!", "* Online (2): Grace, Ada")
            grace.expect("* Ada joined")
            grace.send("unread")
            self.entry.insert(0, f"last words {number}")
            self.button.invoke()
            self.close()
            grace.expect(f"Ada: last words {number}", "* Ada left")


################ The README
class ReadmeTest(ChatTest):
    """The walkthrough cannot go stale: what it quotes, shows and names is so."""
    @classmethod
    def setUpClass(cls):
        cls.readme, cls.server_code, cls.client_code, cls.test_code = (
            pathlib.Path(HERE, name).read_text(encoding="utf-8")
            for name in ("README.md", "chat_server.py", "chat_client.py", "test_chat.py"))
        cls.blocks = re.findall(r"(?ms)^```python\n(.*?)^```$", cls.readme)

    def test_it_quotes_the_code_as_it_is(self):
        code = self.server_code + self.client_code
        quotes = [block for block in self.blocks
                  if not block.startswith((">>>", "# naive.py"))]
        self.assertGreater(len(quotes), 5)
        missing = [quote for quote in quotes if quote not in code]
        for name in re.findall(r"(?m)^ *(?:class|def) ([^_]\w*)", code):
            if not re.search(rf"\b{name}\b", self.readme):
                missing.append(name)
        self.assertEqual("\n".join(missing), "", "The README is not about this code any more. "
                         "If you have changed it for an exercise, do not mind.")

    def test_the_session_in_the_prompt_runs_as_it_is_printed(self):
        session = "".join(block for block in self.blocks if block.startswith(">>>"))
        session = session.replace("7500", str(self.start_server().port))
        test = doctest.DocTestParser().get_doctest(session, {}, "README", "README.md", 0)
        said = []
        result = doctest.DocTestRunner().run(test, out=said.append)
        self.assertEqual(result.failed, 0, "".join(said))
        self.assertGreater(result.attempted, 20)

    def test_the_limits_are_those_of_the_programs(self):
        table = self.readme.split("### Limits")[1].split("###")[0]
        server = chat_server
        options = server.Client.TCP_OPTIONS
        vanished = options["TCP_KEEPIDLE"] + options["TCP_KEEPINTVL"] * options["TCP_KEEPCNT"]
        for row in (f"{server.MAX_LINE} bytes: at least {server.MAX_LINE // 4:,} characters",
                    f"{server.MAX_NICKNAME} characters | `MAX_NICKNAME`",
                    f"{server.NICKNAME_TIMEOUT} seconds | `NICKNAME_TIMEOUT`",
                    f"{server.RATE} a second, {server.BURST} seconds' worth at once | `RATE`",
                    f"one for every {server.LONG_LINE} bytes | `LONG_LINE`",
                    f"{server.Client.SEND_BUFFER // 1024} KiB, and what the systems add",
                    f"after about {vanished} seconds | `TCP_OPTIONS`",
                    f"{chat_client.JOIN_TIMEOUT} seconds | `JOIN_TIMEOUT`",
                    f"{chat_client.MAX_MESSAGES} | `MAX_MESSAGES`"):
            self.assertIn(f"| {row}", table)

    def test_the_tests_that_it_names_exist(self):
        names = re.findall(r"`(test_\w+)`", self.readme)
        self.assertGreaterEqual(len(names), 10)
        gone = [name for name in names if f"def {name}(" not in self.test_code]
        self.assertFalse(gone)

    def test_the_naive_server_breaks_as_it_says(self):
        code, = [block for block in self.blocks if block.startswith("# naive.py\n")]
        code = code.replace("7500", "0").replace(
            "listen()\n", "listen()\nprint(server_socket.getsockname()[1])\n")
        naive = Program("-u", "-c", code)
        self.addCleanup(naive.kill)
        address = Address(HOST, int(naive.line()))
        ada = self.visit(address)
        ada.send_bytes(b"Ada: Hel")
        naive.expect("'Ada: Hel'")
        ada.send_bytes(b"lo\nGrace: I give you all my money.\n")
        naive.expect(r"'lo\nGrace: I give you all my money.\n'")
        ada.send_bytes(b"Ada: Caf\xc3")
        naive.wait_for_log("UnicodeDecodeError")
        # It must not wait for somebody who reads what it prints.
        reader = threading.Thread(target=naive.process.stdout.read)
        reader.start()
        self.addCleanup(reader.join)
        self.addCleanup(naive.process.kill)
        self.visit(address)    # somebody who does not read
        bob = self.visit(address)
        bob.socket.settimeout(0.5)
        with self.assertRaises(socket.timeout):
            for _ in range(100_000):
                bob.send_bytes(b"x" * 1000)


if __name__ == "__main__":
    unittest.main()
