"""What the chat does, as tests: they read like a specification, and use real sockets and real
processes.

Run them:   python -m unittest                  (all of them, in this folder)
            python -m unittest -k nickname      (those whose name holds a word)

Nothing is waited for with a bare sleep: whatever is expected has DEADLINE seconds to come. To
know that something does not come, a later line is sent as a marker, and all that is heard until
then is compared. The window is a real one, too: without Tkinter or a screen its tests are
skipped (Linux: xvfb-run python -m unittest).
"""
import ast
import collections
import contextlib
import doctest
import faulthandler
import functools
import gc
import os
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
limits_only = unittest.skipUnless(resource, "Windows cannot limit the number of open files")


def setUpModule():
    # A script that runs the tests in its background has them ignore Ctrl+C, and the programs
    # that they start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if resource:    # macOS allows 256 open files by default; 300 visitors need more
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


def memory(pid, field="VmRSS"):
    """Return how much memory a process uses now, in KiB; VmHWM: the most that it ever used."""
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(field + r":\s+(\d+) kB", status.read()).group(1))


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
                                 f"{expected!r}. Heard before: {list(self.heard)}") from None
        if line and not line.endswith("\n"):
            raise AssertionError(f"a line without an ending: {line!r}")
        self.heard.append(line[:-1])
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


class ServerProcess:
    """chat_server.py as a program on a free port.

    `setup` is Python code that runs first; `paused`: nobody reads its log until it stops;
    `checks`: Python's own, which show what is not closed, but take memory too.
    """
    def __init__(self, *options, setup="", paused=False, checks=True, folder=HERE):
        python = [sys.executable, *["-X", "dev", "-W", "error"] * checks]
        start = ["chat_server.py"]
        if setup:
            start = ["-c", f"import chat_server\n{setup}\nchat_server.main()"]
        self.process = subprocess.Popen(
            [*python, *start, "--port", "0", *options], cwd=folder,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
            # What it does not flush must not come.
            env={**os.environ, "PYTHONUNBUFFERED": ""})
        self.log = ""
        self.log_thread = threading.Thread(target=self.read_log)
        self.greeting = [self.process.stdout.readline() for _ in range(2)]
        found = re.search(r"listening on (\S+) port (\d+)", self.greeting[0])
        if not paused or not found:
            self.log_thread.start()
        if not found:
            self.kill()
            raise AssertionError(f"The server did not start: {self.greeting} {self.log}")
        self.host, self.port = found.group(1), int(found.group(2))

    def read_log(self):
        for line in self.process.stderr:
            self.log += line

    def wait_for_log(self, text):
        wait_until(lambda: text in self.log, lambda: f"{text!r} is not in the log: {self.log}")

    def stop(self, number=signal.SIGINT):
        """Stop it as Ctrl+C does, or by another signal, and assert that it ends as it should.

        Return how many seconds that took.
        """
        if self.process.returncode is not None:
            return 0
        if not self.log_thread.ident:    # nobody has read the log until now
            self.log_thread.start()
        started = time.monotonic()
        if os.name == "posix":
            self.process.send_signal(number)
        else:
            self.process.terminate()
        try:
            status = self.process.wait(DEADLINE)
        finally:
            seconds = time.monotonic() - started
            self.kill()
        if os.name == "posix" and status or re.search("Traceback|Warning", self.log):
            raise AssertionError(f"The server ended with status {status}: {self.log}")
        return seconds

    def kill(self):
        """End it as a power failure does."""
        self.process.kill()
        self.process.wait()
        self.log_thread.join()
        self.process.stdout.close()
        self.process.stderr.close()


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

    def test_a_message_cannot_colour_a_terminal(self):
        self.assert_heard(b"\x1b[31mred\x1b[0m\n", "[31mred[0m")

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
        before = memory(program.process.pid, "VmHWM")
        for _ in range(16):
            ada.send_bytes(b"x" * 1024 * 1024)
            self.assertLess(memory(program.process.pid, "VmHWM") - before, 4096)    # KiB
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

    def test_a_nickname_and_messages_may_come_in_one_packet(self):
        self.room("Grace")
        self.people["Ada"] = self.newcomer()
        self.play("""
            Ada > Ada|hello|/who
            Ada < * Welcome, Ada!|* Online (2): Grace, Ada|* Online (2): Grace, Ada
            Grace < * Ada joined|Ada: hello""")

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
        ada, = self.room("Ada")
        ada.send("/who")
        ada.finish()
        self.play("Ada < * Online (1): Ada|")

    def test_a_list_never_contradicts_the_notice_before_it(self):
        self.room("Ada", "Grace")
        reply, grace = self.server.reply, self.client("Grace")

        def reply_late(client, line):    # while Grace tries to leave
            thread = threading.Thread(target=self.server.disconnect_client, args=(grace,))
            thread.start()
            thread.join(0.2)
            reply(client, line)
        self.patch(self.server, "reply", reply_late)
        self.play("Ada > /who\nAda < * Online (2): Ada, Grace|* Grace left")

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
        end, heard = time.monotonic() + 1.5, []

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
    def test_small_messages_do_not_wait_and_slow_readers_have_256_kib(self):
        self.room("Ada")
        ask = self.client("Ada").socket.getsockopt
        self.assertTrue(ask(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        with socket.socket() as another:    # Linux doubles what it is asked for
            another.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * 1024)
            expected = another.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self.assertEqual(ask(socket.SOL_SOCKET, socket.SO_SNDBUF), expected)

    def test_a_computer_that_vanished_is_noticed(self):
        self.room("Ada")
        ask = self.client("Ada").socket.getsockopt
        self.assertTrue(ask(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3),
                            ("TCP_USER_TIMEOUT", 60000)):
            if hasattr(socket, name):
                self.assertEqual(ask(socket.IPPROTO_TCP, getattr(socket, name)), value, name)

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
            udp_socket.connect.side_effect = OSError
            self.assertRegex(chat_server.how_to_join("0.0.0.0", 7500), "--host .*ipconfig")

    def test_what_makes_no_sense_is_said_in_one_line(self):
        other = socket.create_server((HOST, 0))
        self.addCleanup(other.close)
        port = other.getsockname()[1]
        for options, status, said in (
                (f"--port {port}", 1, rf"\A.*\b{port}\b.*\n\Z"),
                # This is nobody's address (RFC 5737); of the next, bind raises no OSError.
                ("--port 0 --host 203.0.113.1", 1, r"\A.*203\.0\.113\.1.*\n\Z"),
                ("--port 0 --host é..b", 1, r"\A.*\.\.b.*\n\Z"),
                ("--port 65536", 2, "error: a port"), ("--port -1", 2, "error: a port"),
                ("--port 0 --rate -1", 2, "rate"), ("--port x", 2, "error: ")):
            with self.subTest(options):
                python = [sys.executable, "-X", "dev", "-W", "error", "chat_server.py"]
                done = subprocess.run([*python, *options.split()], cwd=HERE, text=True,
                                      capture_output=True, timeout=DEADLINE)
                self.assertRegex(done.stderr, said)
                self.assertNotIn("Traceback", done.stderr)
                self.assertEqual((done.returncode, done.stdout), (status, ""))


################ The program: its log
class LogTest(ChatTest):
    def chat(self, *options):
        """Let somebody join, speak and leave. Return what the server logged."""
        program = self.start_program(*options)
        self.fill_room(program, "Grace", "Ada")
        self.play("Ada > hello|/quit\nGrace < Ada: hello|* Ada left\nGrace > /quit\nGrace <")
        program.stop()
        return program.log

    def test_the_log_shows_joins_messages_and_departures_with_the_time(self):
        logged = re.findall(r"(?m)^\d\d:\d\d:\d\d (.+)$", self.chat())
        self.assertEqual(sorted(logged), ["Ada joined", "Ada left", "Ada: hello",
                                          "Grace joined", "Grace left"])

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

    @linux_only
    def test_an_idle_visitor_takes_less_than_40_kib(self):
        program = self.start_program("--quiet", checks=False)
        self.fill_room(program, "Ada")
        before = memory(program.process.pid)
        for number in range(300):    # each asserts that it is in the room
            self.visit(program, f"Visitor {number}")
        self.assertLess((memory(program.process.pid) - before) / 300, 40)


################ The program: stopping
@posix_only
class StopTest(ChatTest):
    def test_everybody_hears_that_the_server_stops_and_the_port_is_free_at_once(self):
        program = self.start_program()
        for number in (signal.SIGINT, signal.SIGTERM):
            visitors = [self.visit(program, f"Visitor {number}") for number in range(50)]
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

    def test_neither_a_nameless_visitor_nor_a_flood_delays_the_end(self):
        program = self.start_program("--rate", "1")
        nameless, flooder = self.visit(program), self.visit(program, "Flooder")
        nameless.expect(PROMPT)
        self.keep_sending(flooder, b"hello\n" + (b"x" * 4000 + b"\n") * 100)
        program.wait_for_log("Flooder: hello")    # the next line must wait for 15 seconds
        self.assertLess(program.stop(), 2)
        nameless.expect(STOPPED, END)


################ The client: its connection
Address = collections.namedtuple("Address", "host port")    # of a server that nobody has started


class RawServer:
    """A server that speaks no protocol of its own: it takes one connection and does with it what talk says."""
    host = HOST

    def __init__(self, talk, buffer=0):
        self.listener = socket.socket()
        self.listener.settimeout(DEADLINE)
        if buffer:    # bytes that the kernel keeps for a server that does not read
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.listener.bind((HOST, 0))
        self.listener.listen()
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.serve, args=(talk,))
        self.thread.start()

    def serve(self, talk):
        try:
            connection, address = self.listener.accept()
            with connection:
                connection.settimeout(DEADLINE)
                talk(connection)
        except OSError:
            pass    # nobody came, or the client has left

    def stop(self):
        try:
            socket.create_connection((HOST, self.port), DEADLINE).close()    # ends the wait in accept
        except OSError:
            pass
        self.thread.join()
        self.listener.close()


def until_closed(connection):
    """Read until the client closes. As a server, this one says nothing."""
    while connection.recv(65536):
        pass


def saying(*pieces):
    """Return what a raw server does that sends these bytes, each as a packet of its own, and then only listens."""
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
        client = ClientProcess("--host", server.host, "--port", str(server.port), *options, **how)
        self.addCleanup(client.stop)
        return client

    def free_port(self):
        """Return a port on which nobody listens."""
        with socket.create_server((HOST, 0)) as listener:
            return listener.getsockname()[1]

    def set(self, **constants):
        """Give constants of the client other values for this test."""
        patcher = mock.patch.multiple(chat_client, **constants)
        patcher.start()
        self.addCleanup(patcher.stop)


class ConnectionTest(ClientCase):
    def connect(self, server, nickname="Ada"):
        """Return a client that connects, and a function that waits for what comes next."""
        client = chat_client.ChatClient(server.host, server.port, nickname)
        client.start()
        self.addCleanup(client.close, DEADLINE)
        return client, functools.partial(client.incoming.get, timeout=DEADLINE)

    def join(self, nickname="Ada"):
        """Return Grace, a visitor, and a client that is in the room with her, and its function."""
        server = self.start_server()
        grace = self.visit(server, "Grace")
        client, line = self.connect(server, nickname)
        grace.expect(f"* {nickname} joined")
        self.assertEqual([line(), line()],
                         [f"* Welcome, {nickname}!", f"* Online (2): Grace, {nickname}"])
        return grace, client, line

    def assert_fails(self, server, reason, nickname="Ada", kind=chat_client.ChatError):
        """Assert that nothing but this reason comes from an attempt to join."""
        client, line = self.connect(server, nickname)
        error = line()
        self.assertIs(type(error), kind)
        self.assertRegex(str(error), reason)
        client.thread.join(DEADLINE)    # which closes the connection
        self.assertFalse(client.thread.is_alive())

    def test_it_joins_sends_and_receives(self):
        grace, ada, line = self.join()
        ada.send_message("hello")
        grace.expect("Ada: hello")
        grace.send("good morning")
        self.assertEqual(line(), "Grace: good morning")

    def test_a_refused_nickname_carries_the_reason_and_ends_the_connection(self):
        server = self.start_server()
        grace = self.visit(server, "Grace")
        self.assert_fails(server, "^Somebody here is called Grace already", "Grace",
                          kind=chat_client.NicknameRefused)
        wait_until(lambda: len(server.connected_clients) == 1)
        self.connect(server, " Ada\nLovelace ")    # white space is one line all the same
        grace.expect("* Ada Lovelace joined")

    def test_a_message_of_4096_bytes_is_sent_and_a_longer_one_is_not(self):
        grace, ada, _ = self.join()
        for text in ("x" * 4097, "🙂" * 1025):
            with self.assertRaisesRegex(chat_client.ChatError, f"4096.*{len(text.encode())}"):
                ada.send_message(text)
        ada.send_message("🙂" * 1024)
        ada.send_message("caf\udce9")    # what Python makes of a byte that is no UTF-8
        grace.expect("Ada: " + "🙂" * 1024, "Ada: caf?")

    def test_a_server_that_vanished_is_noticed_and_small_messages_do_not_wait(self):
        _, client, _ = self.join()
        self.assertTrue(client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        for option, value in client.TCP_OPTIONS.items():
            if hasattr(socket, option):
                found = client.socket.getsockopt(socket.IPPROTO_TCP, getattr(socket, option))
                self.assertEqual(found, value, option)

    def test_one_who_is_silent_for_long_stays_connected(self):
        self.set(JOIN_TIMEOUT=0.2)
        grace, _, line = self.join()
        with self.assertRaises(queue.Empty):
            line(timeout=0.4)    # longer than JOIN_TIMEOUT
        grace.send("hello")
        self.assertEqual(line(), "Grace: hello")

    def test_a_character_that_packets_cut_in_half_arrives_whole(self):
        pieces = [bytes([byte]) for byte in "* é漢🙂\n".encode()]
        _, line = self.connect(self.start_raw_server(saying(b"* Hi\n", *pieces)))
        self.assertEqual([line(), line()], ["* Hi", "* é漢🙂"])

    def test_only_a_line_feed_ends_a_line_and_what_could_harm_is_removed(self):
        said = "Hi\r\none\u2028\x0ctwo\rthree\x1b[31m\u202e\ncaf".encode() + b"\xe9\n"
        _, line = self.connect(self.start_raw_server(saying(said)))
        self.assertEqual([line(), line(), line()], ["Hi", "onetwothree[31m", "caf\ufffd"])

    def test_nobody_listening_is_said(self):
        address = Address(HOST, self.free_port())
        self.assert_fails(address, f"^Nobody answers at 127.0.0.1 port {address.port}")

    def test_a_computer_that_does_not_exist_is_said(self):
        for host in ("no-such-computer.invalid", "a..b"):    # the second is not even asked for
            self.assert_fails(Address(host, 7500), f"^There is no computer called {host}")

    def test_a_server_that_does_not_answer_in_time_is_given_up_whatever_it_dribbles(self):
        self.set(JOIN_TIMEOUT=0.3)

        def dribble(connection):
            connection.settimeout(0.05)
            for _ in range(200):
                connection.sendall(b"x")
                with contextlib.suppress(socket.timeout):
                    if not connection.recv(100):
                        return
        for talk in (until_closed, saying(b"NICK Who?\n"), dribble):
            started = time.monotonic()
            self.assert_fails(self.start_raw_server(talk), "says nothing")
            self.assertLess(time.monotonic() - started, 2)

    def test_a_name_server_that_answers_late_lets_nobody_in_afterwards(self):
        self.set(JOIN_TIMEOUT=0.1)
        server, answer = self.start_server(), threading.Event()
        self.addCleanup(answer.set)
        connect = socket.create_connection

        def late(*arguments):
            answer.wait(DEADLINE)
            return connect(*arguments)
        with mock.patch.object(chat_client.socket, "create_connection", late):
            client, line = self.connect(server)
            self.assertRegex(str(line()), "says nothing")
            answer.set()
            client.thread.join(DEADLINE)
        grace = self.visit(server)
        grace.send("Grace")
        grace.expect(PROMPT, "* Welcome, Grace!", "* Online (1): Grace")

    def test_a_server_that_closes_at_once_is_said(self):
        self.assert_fails(self.start_raw_server(lambda connection: None), "lost")

    def test_the_end_of_the_connection_is_told_once(self):
        def talk(connection):
            connection.sendall(b"Hi\nlast words")
        client, line = self.connect(self.start_raw_server(talk))
        self.assertEqual([line(), line()], ["Hi", "last words"])
        self.assertRegex(str(line()), "lost")
        with self.assertRaises(queue.Empty):
            line(timeout=0.05)
        with self.assertRaisesRegex(chat_client.ChatError, "^Not sent: .*lost"):
            client.send_message("hello")

    def test_an_endless_line_comes_in_pieces(self):
        size, heard = 4 * 1024 * 1024, 0
        _, line = self.connect(self.start_raw_server(saying(b"x" * size)))
        while heard < size - 65536:
            piece = len(line())
            self.assertLessEqual(piece, 65536)
            heard += piece

    def test_to_close_is_to_wait_until_the_server_has_read_all(self):
        heard = []

        def talk(connection):
            connection.sendall(b"Hi\n" + b"unread " * 1000)
            with connection.makefile("rb") as file:
                heard.extend(file)    # until the client says that nothing more comes
            time.sleep(0.2)
            heard.append("closed")
        client, line = self.connect(self.start_raw_server(talk))
        line()
        client.send_message("last words")
        client.close()
        self.assertEqual(heard, [b"last words\n", "closed"])

    def test_to_close_does_not_wait_for_ever(self):
        done = threading.Event()
        server = self.start_raw_server(
            lambda connection: (connection.sendall(b"Hi\n"), done.wait(DEADLINE)))
        client, line = self.connect(server)
        self.addCleanup(done.set)
        line()
        started = time.monotonic()
        client.close(0.1)
        self.assertLess(time.monotonic() - started, 1)


################ The client: the terminal
class ClientProcess:
    """chat_client.py as a program, through pipes. `setup` is Python code that runs first."""
    check = ChatTest()

    def __init__(self, *options, setup="", environment=None, folder=HERE, stdin=subprocess.PIPE):
        start = ["-c", f"import chat_client\n{setup}\nchat_client.main()"] if setup else ["chat_client.py"]
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", *start, *options], cwd=folder, encoding="utf-8",
            stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "", "PYTHONIOENCODING": "utf-8", **(environment or {})})
        self.watchdog = threading.Timer(30, self.process.kill)    # so that no test waits for ever
        self.watchdog.daemon = True
        self.watchdog.start()

    def type(self, *lines):
        self.process.stdin.write("".join(line + "\n" for line in lines))
        self.process.stdin.flush()

    def line(self):
        """Return the next line that it prints, without the question before it."""
        return self.process.stdout.readline().replace("Nickname: ", "").rstrip("\n")

    def expect(self, *lines):
        self.check.assertEqual([self.line() for _ in lines], list(lines))

    def expect_end(self, status, output="", errors=""):
        """Assert that it ends by itself, after printing this. errors is a regular expression for one line."""
        try:
            self.check.assertEqual(self.process.stdout.read().replace("Nickname: ", ""), output)
            self.check.assertRegex(self.process.stderr.read(), rf"\A{errors}.*\n\Z" if errors else r"\A\Z")
            self.check.assertEqual(self.process.wait(DEADLINE), status)
        finally:
            self.stop()

    def press_ctrl_c(self):
        """Send SIGINT, and wait for the end. Python may miss one that comes just before it waits for the keyboard."""
        for _ in range(10):
            self.process.send_signal(signal.SIGINT)
            try:
                return self.process.wait(1)
            except subprocess.TimeoutExpired:
                pass

    def stop(self):
        self.watchdog.cancel()
        self.watchdog.join()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()
        if self.process.stdin:
            with contextlib.suppress(OSError):    # nobody reads it any more
                self.process.stdin.close()


class TerminalTest(ClientCase):
    def start_terminal(self, server, *options, **how):
        return self.start_client(server, "--text", *options, **how)

    def chat(self, rate=0, **how):
        """Return Grace, a visitor, and Ada, a terminal, who are in one room."""
        server = self.start_server(rate=rate)
        grace = self.visit(server, "Grace")
        ada = self.start_terminal(server, "--nickname", "Ada", **how)
        ada.expect("* Welcome, Ada!", "* Online (2): Grace, Ada")
        grace.expect("* Ada joined")
        return grace, ada

    def test_what_is_typed_is_sent_and_what_comes_is_printed(self):
        grace, ada = self.chat()
        ada.type("hello")
        grace.expect("Ada: hello")
        grace.send("good morning")
        ada.expect("Grace: good morning")
        ada.type("/who")
        ada.expect("* Online (2): Grace, Ada")

    def test_the_first_line_of_the_input_is_the_nickname(self):
        server = self.start_server()
        grace = self.visit(server, "Grace")
        ada = self.start_terminal(server)
        ada.type("Ada", "hello")
        ada.expect("* Welcome, Ada!")
        grace.expect("* Ada joined", "Ada: hello")

    def test_a_refused_nickname_in_a_pipe_ends_it_and_nobody_joins(self):
        server = self.start_server()
        grace = self.visit(server, "Grace")
        for options, typed in (((), ["Grace"]), (("--nickname", "Grace"), [])):
            poet = self.start_terminal(server, *options)
            poet.type(*typed, "The first verse", "The second")
            poet.expect_end(1, errors="Somebody here is called Grace already")
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
            ada.expect("* Welcome, Ada!")
            grace.expect("* Ada joined")
            keyboard.write(b"/quit\n")
            grace.expect("* Ada left")

    @posix_only
    def test_a_closed_or_full_input_or_output_is_no_traceback(self):
        server = self.start_server()
        self.visit(server, "Grace")
        command = [sys.executable, "-X", "dev", "-W", "error", "chat_client.py", "--text",
                   "--nickname", "Ada", "--host", HOST, "--port", str(server.port)]
        for number, redirection in enumerate(("<&-", ">&-", "> /dev/full")):
            if "full" in redirection and not os.path.exists("/dev/full"):
                continue
            with self.subTest(redirection):
                command[8] = f"Ada {number}"    # the one before may not have left yet
                done = subprocess.run(["sh", "-c", f'"$@" {redirection}', "sh", *command],
                                      cwd=HERE, timeout=DEADLINE, stdin=subprocess.DEVNULL,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                self.assertEqual(done.returncode, 1, done)
                self.assertLessEqual(done.stderr.count(b"\n"), 1, done.stderr.decode())

    @posix_only
    def test_nobody_reading_the_output_any_more_is_no_traceback(self):
        grace, ada = self.chat()
        ada.process.stdout.close()
        wait_until(lambda: grace.send("hello") or ada.process.poll() is not None)
        self.assertEqual((ada.process.returncode, ada.process.stderr.read()), (1, ""))

    def test_what_could_drive_the_terminal_is_not_printed(self):
        server = self.start_raw_server(saying(b"Hi\x1b[2J \x1b]0;title\x07there\n"))
        ada = self.start_terminal(server, "--nickname", "Ada")
        ada.expect("Hi[2J ]0;titlethere")

    def test_quit_ends_it_and_the_last_message_arrives(self):
        for text in ("/quit", "/quit for today"):
            grace, ada = self.chat()
            ada.type(" /quit is a command", "last words", text, "too late")
            grace.expect("Ada:  /quit is a command", "Ada: last words", "* Ada left")
            ada.expect_end(0)

    def test_the_end_of_the_input_ends_it_and_the_last_message_arrives(self):
        grace, ada = self.chat()
        ada.process.stdin.write("last words")    # even without a line ending
        ada.process.stdin.close()
        grace.expect("Ada: last words", "* Ada left")
        ada.expect_end(0)

    def test_the_end_of_the_input_instead_of_a_nickname_ends_it(self):
        ada = self.start_terminal(self.start_server())
        ada.process.stdin.close()
        ada.expect_end(0)

    @posix_only
    def test_ctrl_c_ends_it(self):
        grace, ada = self.chat()
        ada.type("last words")
        grace.expect("Ada: last words")
        ada.press_ctrl_c()
        grace.expect("* Ada left")
        ada.expect_end(0)

    @posix_only
    def test_ctrl_c_instead_of_a_nickname_ends_it(self):
        ada = self.start_terminal(self.start_server())
        self.assertEqual(ada.process.stdout.read(10), "Nickname: ")
        ada.press_ctrl_c()
        ada.expect_end(0)

    def test_the_last_message_before_the_end_always_arrives(self):
        server = self.start_server()
        grace = self.visit(server, "Grace")
        self.start_terminal(server, "--nickname", "Ada", setup="""
import io, sys
for number in range(50):
    sys.stdin = io.TextIOWrapper(io.BytesIO(b"last words %d" % number))
    chat_client.chat_in_terminal(sys.argv[2], int(sys.argv[4]), "Ada")
sys.exit()""")
        for number in range(50):
            grace.expect("* Ada joined", f"Ada: last words {number}", "* Ada left")

    def test_all_of_a_long_input_arrives_at_the_rate_of_the_server(self):
        grace, ada = self.chat(rate=50, setup="chat_client.CLOSE_TIMEOUT = 0.1")
        ada.type(*map(str, range(150)))    # takes a second, longer than the window would wait
        ada.process.stdin.close()
        for number in range(150):
            grace.expect(f"Ada: {number}")
            if number % 20 == 0:
                grace.send("hello")    # she is still there to hear it
        grace.expect("* Ada left")

    def test_a_message_that_is_too_long_is_said_and_the_chat_goes_on(self):
        grace, ada = self.chat()
        ada.type("x" * 4097, "hello")
        self.assertRegex(ada.line(), "^Not sent: .* 4096 bytes")
        grace.expect("Ada: hello")

    def test_what_the_terminal_cannot_show_becomes_a_question_mark(self):
        grace, ada = self.chat(environment={"PYTHONIOENCODING": "ascii"})
        grace.send("🙂", "hello")
        ada.expect("Grace: ?", "Grace: hello")

    def test_a_lost_connection_ends_it_although_the_input_is_open(self):
        server = self.start_program()
        ada = self.start_terminal(server, "--nickname", "Ada")
        ada.expect("* Welcome, Ada!", "* Online (1): Ada")
        server.kill()
        ada.expect_end(1, "The connection to the server is lost.\n")

    def test_a_server_that_stops_is_heard_first(self):
        server = self.start_server()
        ada = self.start_terminal(server, "--nickname", "Ada")
        ada.expect("* Welcome, Ada!", "* Online (1): Ada")
        self.stop_server(server)
        ada.expect_end(1, f"{STOPPED}\nThe connection to the server is lost.\n")

    def test_nobody_listening_is_said_in_one_line(self):
        server = self.start_server()
        self.stop_server(server)
        ada = self.start_terminal(server, "--nickname", "Ada")
        ada.expect_end(1, errors=f"Nobody answers at 127.0.0.1 port {server.port}")

    def test_a_computer_that_does_not_exist_is_said_in_one_line(self):
        ada = self.start_terminal(Address("é..b", 7500), "--nickname", "Ada")
        ada.expect_end(1, errors="There is no computer called ")

    def test_a_server_that_says_nothing_is_said_in_one_line(self):
        ada = self.start_terminal(self.start_raw_server(until_closed), "--nickname", "Ada",
                                  setup="chat_client.JOIN_TIMEOUT = 0.1")
        ada.expect_end(1, errors=".*says nothing")

    def test_a_server_that_closes_at_once_is_said_in_one_line(self):
        ada = self.start_terminal(self.start_raw_server(lambda connection: None), "--nickname", "Ada")
        ada.expect_end(1, errors="The connection to the server is lost")

    def test_a_server_that_asks_for_no_nickname_lets_us_in(self):
        ada = self.start_terminal(self.start_raw_server(saying(b"Welcome to Simple Chat!\n")), "--nickname", "Ada")
        ada.expect("Welcome to Simple Chat!")
        ada.process.stdin.close()
        ada.expect_end(0)

    def test_the_terminal_needs_no_tkinter_and_without_it_the_window_says_what_to_do(self):
        with tempfile.TemporaryDirectory() as folder:
            os.mkdir(os.path.join(folder, "tkinter"))
            with open(os.path.join(folder, "tkinter", "__init__.py"), "w") as file:
                file.write("raise ImportError('this computer has none')")
            grace, ada = self.chat(environment={"PYTHONPATH": folder})
            ada.type("hello")
            grace.expect("Ada: hello")
            window = self.start_client(Address(HOST, 7500), environment={"PYTHONPATH": folder})
            window.expect_end(1, errors=".*python3-tk.*--text")

    @unittest.skipUnless(sys.platform.startswith("linux"), "needs X11, where a screen can be missing")
    def test_without_a_screen_the_window_says_what_to_do(self):
        window = self.start_client(Address(HOST, 7500), environment={"DISPLAY": ""})
        window.expect_end(1, errors=".*--text")

    def test_a_bad_port_is_refused(self):
        for port, status in (("0", 1), ("-1", 1), ("65536", 1), ("x", 2)):
            done = self.run_program("--port", port, "--text", "--nickname", "Ada")
            self.assertEqual((done.returncode, done.stdout), (status, ""))
            self.assertRegex(done.stderr, "port")
            self.assertNotIn("Traceback", done.stderr)

    def test_help_shows_each_option_and_its_default(self):
        done = self.run_program("--help")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        options = re.split(r"\n  (?=-)", done.stdout)
        for option, default in (("--host", "127.0.0.1"), ("--port", "7500"), ("--nickname", ""), ("--text", "False")):
            text, = [" ".join(text.split()) for text in options if text.startswith(option)]
            self.assertIn(f"(default: {default})", text)

    def run_program(self, *options):
        return subprocess.run([sys.executable, "-X", "dev", "-W", "error", "chat_client.py", *options], cwd=HERE,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=DEADLINE, encoding="utf-8")

    def test_each_program_works_when_copied_alone_into_an_empty_folder(self):
        with tempfile.TemporaryDirectory() as server_folder, tempfile.TemporaryDirectory() as client_folder:
            shutil.copy(os.path.join(HERE, "chat_server.py"), server_folder)
            shutil.copy(os.path.join(HERE, "chat_client.py"), client_folder)
            server = self.start_program(folder=server_folder)
            grace = self.visit(server, "Grace")
            ada = self.start_terminal(server, "--nickname", "Ada", folder=client_folder)
            grace.expect("* Ada joined")
            grace.send("hello")
            ada.expect("* Welcome, Ada!", "* Online (2): Grace, Ada", "Grace: hello")
            ada.type("/quit")
            ada.expect_end(0)
            server.stop()


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
            cls.tkinter.Tk().destroy()
        except cls.tkinter.TclError as error:
            raise unittest.SkipTest(f"needs a screen: {error}")

    def setUp(self):
        super().setUp()
        self.threads = threading.active_count()
        gc.disable()    # what belongs to Tk must not be collected by another thread: that ends the process
        self.addCleanup(gc.enable)
        errors = []     # an error in what a key or a timer calls fails the test
        patcher = mock.patch.object(self.tkinter.Tk, "report_callback_exception",
                                    lambda root, *error: errors.append("".join(traceback.format_exception(*error))))
        patcher.start()
        self.addCleanup(self.assertEqual, errors, [], "an error in the window")
        self.addCleanup(patcher.stop)

    def open(self, server, nickname="Ada"):
        """Open the window, and wait until it or the dialog is shown."""
        self.window = chat_client.ChatWindow(server.host, server.port, nickname)
        self.addCleanup(self.close)
        self.root = self.window.root
        self.listbox, self.entry = self.window.message_listbox, self.window.entry_field
        self.button = self.window.send_button
        self.pump(lambda: self.dialog() or self.root.state() == "normal")

    def close(self):
        if self.window:
            if self.is_open():
                self.window.on_closing()
            del self.window, self.root, self.listbox, self.entry, self.button
            gc.collect()

    def is_open(self):
        try:
            return self.root.winfo_exists()
        except self.tkinter.TclError:
            return False

    def chat(self, server=None):
        """Return Grace, a visitor, who is in one room with Ada, a window."""
        server = server or self.start_server()
        grace = self.visit(server, "Grace")
        self.open(server)
        grace.expect("* Ada joined")
        self.see("* Online (2): Grace, Ada")
        return grace

    def pump(self, condition):
        """Let the window work until condition() is true."""
        def check():
            self.root.update()
            return condition()
        wait_until(check)

    def focus(self, widget):
        """Give the keyboard to a widget, even where there is no window manager, and again if something else takes it."""
        self.pump(lambda: self.root.focus_displayof() == widget or widget.focus_force())

    def write(self, text):
        """Put this into the entry and press Enter."""
        self.entry.delete(0, "end")
        self.entry.insert(0, text)
        self.press_enter()

    def press_enter(self):
        self.focus(self.entry)
        self.entry.event_generate("<Return>")

    def rows(self):
        return list(self.listbox.get(0, "end"))

    def texts(self):
        """Return the messages that are shown, of which each fits into a row, without their times."""
        for row in self.rows():
            self.assertRegex(row, r"^\d\d:\d\d  \S")
        return [row[7:] for row in self.rows()]

    def see(self, *lines):
        """Let the window work until it shows these lines at the end."""
        def last():
            return self.listbox.get(max(0, self.listbox.size() - len(lines)), "end")
        self.pump(lambda: tuple(row[7:] for row in last()) == lines)

    def colours(self):
        """Return the colour of each row, or "" if it has none of its own."""
        return [str(self.listbox.itemcget(index, "foreground")) for index in range(self.listbox.size())]

    def dialog(self):
        """Return the window of the dialog, or None."""
        dialogs = [child for child in self.root.winfo_children() if child.winfo_class() == "Toplevel"]
        return next((dialog for dialog in dialogs if dialog.state() != "withdrawn"), None)

    def parts(self, kind):
        """Return the widgets of one kind in the dialog."""
        form, = self.dialog().winfo_children()
        return [part for part in form.winfo_children() if part.winfo_class() == kind]

    def typed(self):
        """Return what the fields of the dialog hold."""
        return [field.get() for field in self.parts("TEntry")]

    def status(self):
        """Return what the dialog says."""
        return str(self.parts("TLabel")[-1]["text"])

    def fill_in(self, *values, enter="<Return>"):
        """Fill the fields of the dialog: nickname, server, port; None leaves a field as it is. Then press Enter."""
        for field, value in zip(self.parts("TEntry"), values):
            if value is not None:
                field.delete(0, "end")
                field.insert(0, value)
        field = self.parts("TEntry")[0]
        self.focus(field)
        field.event_generate(enter)


class DialogTest(WindowCase):
    def assert_refused(self, *values, says):
        """Assert that the dialog does not accept these values, says why, and keeps what was typed."""
        self.fill_in(*values)
        self.pump(lambda: self.status() != "Connecting…")
        self.assertRegex(self.status(), says)
        self.assertEqual([typed for typed, value in zip(self.typed(), values) if value is not None],
                         [value for value in values if value is not None])
        self.assertEqual((self.dialog().state(), self.root.state()), ("normal", "withdrawn"))

    def test_it_asks_for_the_nickname_and_knows_the_rest(self):
        server = self.start_server()
        self.open(server, "")
        self.assertEqual(self.typed(), ["", HOST, str(server.port)])
        self.assertEqual(self.root.state(), "withdrawn")
        self.pump(lambda: self.dialog().focus_lastfor() == self.parts("TEntry")[0])

    def test_enter_joins(self):
        server = self.start_server()
        grace = self.visit(server, "Grace")
        self.open(server, "")
        self.fill_in("Ada")
        grace.expect("* Ada joined")
        self.see("* Welcome, Ada!", "* Online (2): Grace, Ada")
        self.assertIsNone(self.dialog())
        self.assertEqual((self.root.state(), self.root.title()), ("normal", "Chat - Ada"))

    def test_enter_on_the_number_pad_joins(self):
        self.open(self.start_server(), "")
        self.fill_in("Ada", enter="<KP_Enter>")
        self.see("* Welcome, Ada!", "* Online (1): Ada")

    def test_its_button_joins(self):
        self.open(self.start_server(), "")
        self.parts("TEntry")[0].insert(0, "Ada")
        button, = self.parts("TButton")
        button.invoke()
        self.see("* Welcome, Ada!", "* Online (1): Ada")

    def test_an_empty_nickname_is_refused_with_the_reason_of_the_server(self):
        self.open(self.start_server(), "")
        self.assert_refused("", says="at least 1 visible character")
        self.fill_in("Ada")
        self.see("* Welcome, Ada!", "* Online (1): Ada")

    def test_a_nickname_that_is_taken_is_said_and_another_is_accepted(self):
        server = self.start_server()
        self.visit(server, "Grace")
        self.open(server, "")
        self.assert_refused("Grace", says="Somebody here is called Grace already")
        self.fill_in("Ada")
        self.see("* Welcome, Ada!", "* Online (2): Grace, Ada")

    def test_a_port_that_is_none_is_said(self):
        self.open(self.start_server(), "")
        for port in ("", "x", "0", "65536", "-1", "7500.0", "²"):
            self.assert_refused("Ada", None, port, says="from 1 to 65535")

    def test_nobody_listening_is_said(self):
        self.open(self.start_server(), "")
        port = self.free_port()
        self.assert_refused("Ada", None, str(port), says=f"^Nobody answers at 127.0.0.1 port {port}")

    def test_a_computer_that_does_not_exist_is_said(self):
        self.open(self.start_server(), "")
        for host in ("no-such-computer.invalid", "a..b"):
            self.assert_refused("Ada", host, says=f"^There is no computer called {host}")

    def test_a_server_that_says_nothing_or_closes_is_said(self):
        self.set(JOIN_TIMEOUT=0.2)
        self.open(self.start_raw_server(until_closed), "")
        self.assert_refused("Ada", says="says nothing")
        closing = self.start_raw_server(lambda connection: None)
        self.assert_refused("Ada", None, str(closing.port), says="lost")

    def test_an_empty_server_field_is_said(self):
        self.open(self.start_server(), "")
        self.assert_refused("Ada", "", says="empty")

    def test_one_types_over_a_refused_nickname(self):
        server = self.start_server()
        self.visit(server, "Grace")
        self.open(server, "")
        self.assert_refused("Grace", says="called Grace already")
        field = self.parts("TEntry")[0]
        self.focus(field)
        for key in "Eve":
            field.event_generate("<Key>", keysym=key)
        self.assertEqual(field.get(), "Eve")

    def test_while_it_connects_the_dialog_lives_and_enter_is_one_attempt(self):
        attempts = []

        def talk(connection):
            attempts.append(connection)
            until_closed(connection)
            attempts.append("closed")
        self.open(self.start_raw_server(talk), "")
        for _ in range(3):
            self.fill_in("Ada")
        button, = self.parts("TButton")
        self.assertTrue(button.instate(["disabled"]))
        self.assertEqual(self.status(), "Connecting…")
        self.pump(lambda: attempts)
        self.assertEqual(threading.active_count(), self.threads + 3)    # talk, client, timer
        started = time.monotonic()
        self.parts("TEntry")[0].event_generate("<Escape>")
        self.assertFalse(self.is_open())
        self.assertLess(time.monotonic() - started, 0.5)
        wait_until(lambda: attempts[1:] == ["closed"])

    def test_with_a_nickname_from_the_command_line_it_is_not_shown(self):
        self.open(self.start_server(), "Ada")
        self.assertIsNone(self.dialog())
        self.see("* Welcome, Ada!", "* Online (1): Ada")

    def test_with_a_refused_nickname_from_the_command_line_it_says_why(self):
        server = self.start_server()
        self.visit(server, "Grace")
        self.open(server, "Grace")
        self.assertIn("Somebody here is called Grace already", self.status())
        self.assertEqual((self.dialog().state(), self.typed()[0]), ("normal", "Grace"))

    def test_with_a_nickname_and_nobody_listening_it_says_so(self):
        address = Address(HOST, self.free_port())
        self.open(address)
        self.assertRegex(self.status(), f"^Nobody answers at {HOST} port {address.port}")
        self.assertEqual((self.dialog().state(), self.typed()), ("normal", ["Ada", HOST, str(address.port)]))


class ReadingTest(WindowCase):
    SENTENCE = "A sentence of words that are kept whole, " * 6
    LONG = {"words": SENTENCE, "letters": "x" * 500, "letters between words": SENTENCE + "y" * 500 + " and more",
            "Chinese": "漢字仮名" * 60, "emoji": "🙂🎉👍" * 50, "a mixture": "some words 漢字 🙂, " * 30}

    def test_each_message_has_the_time_in_front(self):
        grace = self.chat()
        grace.send("hello")
        before = time.strftime("%H:%M")
        self.see("Grace: hello")
        self.assertIn(self.rows()[-1], [f"{now}  Grace: hello" for now in (before, time.strftime("%H:%M"))])

    def test_own_messages_and_notices_have_colours_of_their_own(self):
        grace = self.chat()
        grace.send("hello")
        self.see("Grace: hello")
        self.write("good morning")
        grace.send("* not a notice")
        self.see("You: good morning", "Grace: * not a notice")
        self.assertEqual(self.texts(), ["* Welcome, Ada!", "* Online (2): Grace, Ada", "Grace: hello",
                                        "You: good morning", "Grace: * not a notice"])
        notice, notice_too, hers, mine, hers_too = self.colours()
        self.assertEqual((hers, hers_too), ("", ""))
        self.assertEqual(notice, notice_too)
        self.assertEqual(len({"", notice, mine}), 3)

    def test_all_rows_of_a_long_message_have_its_colour(self):
        self.chat()
        self.write(self.SENTENCE)
        self.assertGreater(self.listbox.size(), 4)
        self.assertEqual(len(set(self.colours()[2:])), 1)

    def test_at_the_end_it_follows_and_scrolled_up_it_stays(self):
        grace = self.chat()
        grace.send(*map(str, range(100)))
        self.see("Grace: 99")
        self.assertEqual(self.listbox.yview()[1], 1)
        self.listbox.yview(30)
        self.root.update()
        grace.send("more", "and more")
        self.see("Grace: more", "Grace: and more")
        self.assertEqual(self.listbox.nearest(0), 30)
        self.listbox.yview("end")
        grace.send("the last")
        self.see("Grace: the last")
        self.assertEqual(self.listbox.yview()[1], 1)

    def test_scrolled_up_it_stays_when_the_oldest_messages_go(self):
        self.set(MAX_MESSAGES=100)
        grace = self.chat()
        grace.send(*map(str, range(100)))
        self.see("Grace: 99")
        self.listbox.yview(50)
        self.root.update()
        top = self.listbox.get(self.listbox.nearest(0))
        grace.send(*map(str, range(100, 120)))
        self.see("Grace: 119")
        self.assertEqual(self.listbox.get(self.listbox.nearest(0)), top)
        self.assertEqual(self.texts(), [f"Grace: {number}" for number in range(20, 120)])

    def longest_wait(self, lines, last):
        """Let Grace send lines. Return the longest time between two answers to keys, until the last line is shown."""
        answers = []
        self.entry.bind("<Key>", lambda event: answers.append(time.monotonic()), add="+")

        def press():
            self.entry.event_generate("<Key>", keysym="a", when="tail")
            timers.append(self.root.after(5, press))
        timers = []
        self.focus(self.entry)
        press()
        self.grace.send(*lines)
        self.pump(lambda: self.listbox.get("end").endswith(last))
        self.pump(functools.partial(lambda count: len(answers) > count, len(answers)))
        self.root.after_cancel(timers[-1])
        self.assertGreater(len(answers), 20)
        return max(later - earlier for earlier, later in zip(answers, answers[1:]))

    def test_10000_lines_at_once_never_keep_it_from_answering_a_key_and_the_last_5000_are_there(self):
        self.grace = self.chat(self.start_program("--rate", "0", "--quiet", checks=False))
        for attempt in range(3):    # a machine that is busy with other things may need a second one
            wait = self.longest_wait([f"{attempt} {number}" for number in range(10000)], f"{attempt} 9999")
            self.assertEqual(self.texts(), [f"Grace: {attempt} {number}" for number in range(5000, 10000)])
            if wait < 0.1:    # seconds
                break
        self.assertLess(wait, 0.1)

    def resize(self, width, height=400):
        """Resize the window, and wait until its rows have been wrapped again."""
        narrower = width < self.root.winfo_width()
        count = self.listbox.size()
        self.root.geometry(f"{width}x{height}")
        self.pump(lambda: (self.root.winfo_width(), self.root.winfo_height()) == (width, height))
        self.pump(lambda: self.listbox.size() != count and (self.listbox.size() > count) == narrower)

    def test_long_messages_are_wrapped_to_the_width_and_again_when_it_changes(self):
        grace = self.chat()
        grace.send(*self.LONG.values(), "marker")
        self.see("Grace: marker")
        measure = self.tkinter.font.Font(self.root, font=self.listbox["font"]).measure
        borders = ("borderwidth", "highlightthickness", "selectborderwidth")
        border = 2 * sum(int(str(self.listbox[name])) for name in borders)
        for width in (1000, 700, 400):
            self.resize(width)
            self.assertEqual(self.listbox.xview(), (0, 1))
            messages = []
            for row in self.rows():
                self.assertLessEqual(measure(row), self.listbox.winfo_width() - border)
                if row.startswith(" "):    # a continuation
                    messages[-1].append(row)
                else:
                    messages.append([row])
            for text, rows in zip(self.LONG.values(), messages[2:]):
                self.assertGreater(len(rows), 1)
                self.assertEqual("".join(" ".join(rows).split())[5:], "".join(f"Grace: {text}".split()))
            sentence = " ".join(messages[2])
            self.assertEqual(sentence.split()[2:], self.SENTENCE.split())    # no word is cut
            for name, rows in zip(self.LONG, messages[2:]):
                for row in rows[:-1] if "letter" not in name else ():    # no row is left half empty
                    self.assertGreater(measure(row), 0.5 * (self.listbox.winfo_width() - border))

    def test_resized_at_the_end_it_stays_at_the_end(self):
        grace = self.chat()
        grace.send(*[self.SENTENCE] * 30, "marker")
        self.see("Grace: marker")
        for width, height in ((400, 300), (900, 600), (400, 260)):
            self.resize(width, height)
            self.assertEqual(self.listbox.yview()[1], 1)

    def test_resized_when_scrolled_up_the_message_on_top_stays_on_top(self):
        grace = self.chat()
        grace.send(*[f"{number} {self.SENTENCE}" for number in range(30)], "marker")
        self.see("Grace: marker")
        number = next(index for index, row in enumerate(self.rows()) if "Grace: 10 " in row)
        self.listbox.yview(number)
        grace.send("marker")    # once it is shown, the window has noticed that it was scrolled
        self.see("Grace: marker", "Grace: marker")
        for width in (400, 900):
            self.resize(width)
            self.assertIn("Grace: 10 ", self.listbox.get(self.listbox.nearest(0)))

    def copy(self, first, last):
        self.listbox.selection_clear(0, "end")
        self.listbox.selection_set(first, last)
        self.focus(self.listbox)
        self.listbox.event_generate("<<Copy>>")
        return self.root.clipboard_get()

    def test_a_message_is_copied_whole_and_without_the_wrapping(self):
        grace = self.chat()
        text = self.SENTENCE.strip()
        grace.send(text, "hello", "hello", "marker")
        self.see("Grace: marker")
        last = self.listbox.size() - 1
        self.assertGreater(last, 6)
        self.assertEqual(self.copy(3, 3), f"Grace: {text}")
        self.assertEqual(self.copy(2, 4), f"Grace: {text}")
        self.assertEqual(self.copy(last, last), "Grace: marker")

    def test_with_nothing_selected_the_clipboard_stays_as_it_is(self):
        self.chat()
        self.root.clipboard_clear()
        self.root.clipboard_append("something else")
        self.focus(self.listbox)
        self.listbox.event_generate("<<Copy>>")
        self.assertEqual(self.root.clipboard_get(), "something else")

    def test_two_equal_messages_are_both_copied(self):
        grace = self.chat()
        grace.send("hello", "hello", "🙂")
        self.see("Grace: 🙂")
        self.assertEqual(self.copy(2, 4), "Grace: hello\nGrace: hello\nGrace: 🙂")

    def test_only_the_thread_of_the_window_touches_a_widget(self):
        calls = []

        def notice(frame, event, function):    # is called for all that other threads call
            if event == "c_call" and type(getattr(function, "__self__", None)).__name__ == "tkapp":
                calls.append(function.__name__)
        threading.setprofile(notice)
        self.addCleanup(threading.setprofile, None)
        grace = self.chat(self.start_program())
        grace.send("hello")
        self.see("Grace: hello")
        self.write("good morning")
        grace.expect("Ada: good morning")
        self.window.on_closing()
        self.assertEqual(calls, [])


class WritingTest(WindowCase):
    def test_the_entry_has_the_focus_from_the_start(self):
        self.chat()
        self.pump(lambda: self.root.focus_lastfor() == self.entry)

    def test_what_is_typed_is_sent_with_enter_and_shown_as_said_by_you(self):
        grace = self.chat()
        self.focus(self.entry)
        for enter in ("Return", "KP_Enter"):    # the second is that of the number pad
            for key in ("H", "i", "space", "a", "l", "l", enter):
                self.entry.event_generate("<Key>", keysym=key)
            grace.expect("Ada: Hi all")
            self.assertEqual(self.entry.get(), "")
        self.assertEqual(self.texts()[2:], ["You: Hi all", "You: Hi all"])

    def test_who_scrolled_up_and_writes_sees_the_own_message(self):
        grace = self.chat()
        grace.send(*map(str, range(100)))
        self.see("Grace: 99")
        self.listbox.yview(30)
        self.write("hello")
        self.assertEqual(self.listbox.yview()[1], 1)

    def test_the_button_sends(self):
        grace = self.chat()
        self.assertEqual(str(self.button["text"]), "Send")
        self.entry.insert(0, "hello")
        self.button.invoke()
        grace.expect("Ada: hello")
        self.assertEqual((self.texts()[2:], self.entry.get()), (["You: hello"], ""))

    def test_a_blank_message_is_not_sent(self):
        grace = self.chat()
        for text in ("", " ", " \t "):
            self.write(text)
        self.write("marker")
        grace.expect("Ada: marker")
        self.assertEqual(self.texts()[2:], ["You: marker"])

    def test_a_message_that_is_too_long_stays_and_a_notice_says_why(self):
        grace = self.chat()
        self.write("x" * 4097)
        self.assertEqual(self.entry.get(), "x" * 4097)
        self.assertRegex(" ".join(self.rows()[2:]), r"  \* Not sent: .*4096")
        self.assertNotIn("x" * 9, " ".join(self.rows()))
        self.write("x" * 4096)
        grace.expect("Ada: " + "x" * 4096)
        self.assertEqual(self.entry.get(), "")

    def test_pasted_lines_are_a_message_each(self):
        grace = self.chat()
        self.root.clipboard_clear()
        self.root.clipboard_append("one\n\ntwo\r\nthree\n")
        self.focus(self.entry)
        self.entry.event_generate("<<Paste>>")
        self.press_enter()
        grace.expect("Ada: one", "Ada: two", "Ada: three")
        self.assertEqual(self.texts()[2:], ["You: one", "You: two", "You: three"])

    def test_of_pasted_lines_those_after_one_that_is_too_long_stay_with_it(self):
        grace = self.chat()
        self.write("one\n" + "x" * 4097 + "\ntwo")
        grace.expect("Ada: one")
        self.assertEqual(self.entry.get(), "x" * 4097 + "\ntwo")

    def test_who_is_answered_and_not_shown_as_said(self):
        self.chat()
        self.write("/who")
        self.see("* Online (2): Grace, Ada", "* Online (2): Grace, Ada")
        self.assertEqual(len(self.rows()), 3)

    def test_quit_closes_the_window(self):
        for text in ("/quit", "/quit for today"):
            grace = self.chat()
            self.write(text)
            grace.expect("* Ada left")
            self.assertFalse(self.is_open())

    def test_a_server_that_does_not_read_never_stops_the_window(self):
        self.set(CLOSE_TIMEOUT=0.1)
        heard, reading = [], threading.Event()

        def talk(connection):
            connection.sendall(b"Hi\n")
            reading.wait(DEADLINE)
            with connection.makefile("rb") as file:
                heard.extend(file)
        server = self.start_raw_server(talk, buffer=4096)
        self.open(server)
        self.addCleanup(reading.set)
        self.see("Hi")
        self.window.client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        started, sent = time.monotonic(), 0
        while not self.entry.get():
            self.write(f"{sent} " + "x" * 3000)
            sent += 1
            self.assertLess(sent, 1000)
        self.assertLess(time.monotonic() - started, 5)
        self.assertEqual(self.entry.get(), f"{sent - 1} " + "x" * 3000)
        self.assertIn("  * Not sent: the server does not listen", self.rows()[-1])
        reading.set()
        self.pump(lambda: self.press_enter() or not self.entry.get())
        self.window.on_closing()
        wait_until(lambda: len(heard) == sent)
        self.assertEqual([line.split()[0] for line in heard], [b"%d" % number for number in range(sent)])


class KeyboardTest(WindowCase):
    """The hands stay on the keyboard."""
    def test_after_a_click_on_send_one_types_on_and_enter_presses_a_focused_button(self):
        grace = self.chat()
        self.entry.insert(0, "hello")
        self.focus(self.button)    # as a click on it does
        self.button.event_generate("<Return>")
        grace.expect("Ada: hello")
        self.pump(lambda: self.root.focus_get() == self.entry)

    def test_what_is_typed_on_the_messages_goes_to_the_entry(self):
        self.chat()
        self.listbox.selection_set(0)
        self.focus(self.listbox)
        self.listbox.event_generate("<Key>", keysym="h")
        self.assertEqual(self.entry.get(), "h")
        self.pump(lambda: self.root.focus_get() == self.entry)
        self.focus(self.listbox)
        self.listbox.event_generate("<Control-c>")
        self.assertEqual(self.entry.get(), "h")
        self.assertEqual(self.root.clipboard_get(), "* Welcome, Ada!")

    def test_control_a_selects_all_of_an_entry(self):
        self.chat()
        if self.root.tk.call("tk", "windowingsystem") == "aqua":
            self.skipTest("on macOS it is Cmd+A, which is Tk's own")
        self.entry.insert(0, "one two")
        self.focus(self.entry)
        self.entry.event_generate("<Control-a>")
        self.assertEqual(self.entry.selection_get(), "one two")

    def test_page_up_and_page_down_scroll_the_messages_from_the_entry(self):
        grace = self.chat()
        grace.send(*map(str, range(100)))
        self.see("Grace: 99")
        self.focus(self.entry)
        self.entry.event_generate("<Prior>")
        self.assertLess(self.listbox.yview()[1], 1)
        self.entry.event_generate("<Next>")
        self.assertEqual(self.listbox.yview()[1], 1)

    def test_the_arrow_keys_start_at_the_newest_message(self):
        grace = self.chat()
        grace.send(*map(str, range(100)))
        self.see("Grace: 99")
        self.focus(self.listbox)
        self.listbox.event_generate("<Up>")
        self.assertGreaterEqual(self.listbox.curselection()[0], self.listbox.size() - 2)


class LookTest(WindowCase):
    def test_colours_have_a_contrast_of_4_5_on_white_and_on_black(self):
        def luminance(colour):    # as WCAG 2 defines it
            parts = [int(colour[start:start + 2], 16) / 255 for start in (1, 3, 5)]
            red, green, blue = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4
                                for part in parts]
            return 0.2126 * red + 0.7152 * green + 0.0722 * blue
        for colour in chat_client.MessageList.COLOURS.values():
            self.assertGreaterEqual(1.05 / (luminance(colour) + 0.05), 4.5)
            self.assertGreaterEqual((luminance(colour) + 0.05) / 0.05, 4.5)

    def test_the_second_rows_of_a_message_begin_under_its_text(self):
        grace = self.chat()
        grace.send("some words " * 30)
        self.pump(lambda: self.listbox.size() > 3)
        measure = self.tkinter.font.nametofont("TkTextFont").measure
        row = self.rows()[3]
        indent = measure(row[:len(row) - len(row.lstrip())])
        self.assertLessEqual(abs(indent - measure(self.rows()[2][:7])), measure(" ") / 2 + 1)

    def test_the_window_has_a_class_of_its_own(self):
        self.chat()
        self.assertEqual(self.root.winfo_class(), "Chat")

    def test_very_much_text_is_wrapped_again_in_half_a_second(self):
        self.chat()
        messages = self.window.message_list
        for start in range(0, 600, 100):
            messages.add([f"{number} " + "x" * 4090 for number in range(start, start + 100)])
        self.assertIn("  599 xxx", " ".join(self.rows()))
        waits = []
        for width in (700, 500, 600):    # a machine that is busy may need a second try
            started = time.monotonic()
            messages.width = width
            messages.rewrap(width)
            waits.append(time.monotonic() - started)
        self.assertLess(min(waits), 0.5)

    def test_an_error_does_not_stop_the_looking(self):
        grace = self.chat()
        with mock.patch.object(self.tkinter.Tk, "report_callback_exception") as report:
            with mock.patch.object(self.root, "focus_displayof", side_effect=KeyError("popdown")):
                self.pump(lambda: report.called)    # Tk does this while some menus are open
            self.root.update()
        grace.send("hello")
        self.see("Grace: hello")

    def test_on_windows_the_program_says_that_it_knows_high_resolutions(self):
        import ctypes
        with mock.patch.object(chat_client.sys, "platform", "win32"), \
                mock.patch.object(ctypes, "OleDLL", create=True) as library, \
                mock.patch.object(self.tkinter, "Tk", side_effect=self.tkinter.TclError("none")):
            with self.assertRaisesRegex(chat_client.ChatError, "no screen.*--text"):
                chat_client.open_window(HOST, 7500, "")
            library.assert_called_once_with("shcore")
            library().SetProcessDpiAwareness.assert_called_once_with(1)


class UnreadTest(WindowCase):
    def test_the_title_counts_the_unread_messages_until_the_window_has_the_focus(self):
        server = self.start_server()
        grace = self.chat(server)
        self.focus(self.entry)
        grace.send("seen")
        self.see("Grace: seen")
        self.assertEqual(self.root.title(), "Chat - Ada")
        other = self.tkinter.Tk()    # another program's window, for all that Tk knows
        self.addCleanup(gc.collect)
        self.addCleanup(other.destroy)
        self.pump(lambda: other.update() or other.winfo_viewable())
        other.focus_force()
        self.pump(lambda: other.update() or not self.root.focus_displayof())
        grace.send("one", "two", "* three")
        self.see("Grace: one", "Grace: two", "Grace: * three")
        bob = self.visit(server, "Bob")
        grace.expect("* Bob joined")
        grace.send("four")
        self.see("* Bob joined", "Grace: four")
        self.pump(lambda: self.root.title() == "(4) Chat - Ada")
        bob.send("five")
        self.pump(lambda: self.root.title() == "(5) Chat - Ada")
        self.focus(self.entry)
        self.pump(lambda: self.root.title() == "Chat - Ada")


    def test_scrolled_up_what_comes_is_counted_until_one_is_at_the_end_again(self):
        grace = self.chat()
        self.focus(self.entry)
        grace.send(*map(str, range(100)))
        self.see("Grace: 99")
        self.pump(lambda: self.root.title() == "Chat - Ada")
        self.listbox.yview(10)
        grace.send("one", "two")
        self.pump(lambda: self.root.title() == "(2) Chat - Ada")
        self.listbox.yview("end")
        self.pump(lambda: self.root.title() == "Chat - Ada")


class ReconnectTest(WindowCase):
    LOST = "* The connection to the server is lost."

    def lose(self):
        """Chat, then kill the server. Return it."""
        server = self.start_program()
        grace = self.chat(server)
        grace.send("hello")
        self.see("Grace: hello")
        self.entry.insert(0, "half a sent")
        server.kill()
        self.see("Grace: hello", self.LOST)
        return server

    def test_a_lost_connection_is_said_and_all_text_stays(self):
        self.lose()
        self.assertEqual(self.texts(), ["* Welcome, Ada!", "* Online (2): Grace, Ada", "Grace: hello", self.LOST])
        self.assertEqual((self.entry.get(), str(self.button["text"])), ("half a sent", "Reconnect"))
        self.press_enter()
        self.see(self.LOST, "* Not sent: the connection to the server is lost.")
        self.assertEqual(self.entry.get(), "half a sent")
        self.assertEqual(self.root.title(), "Chat - Ada (connection lost)")
        self.write("/quit")
        self.assertFalse(self.is_open())

    def test_reconnect_asks_again_and_goes_on_in_the_same_window(self):
        server = self.lose()
        self.button.invoke()
        self.assertEqual(self.typed(), ["Ada", HOST, str(server.port)])
        self.fill_in("Ada")
        self.pump(lambda: self.status().startswith("Nobody answers"))
        server = self.start_program("--port", str(server.port))
        grace = self.visit(server, "Grace")
        self.fill_in("Ada L.")
        grace.expect("* Ada L. joined")
        self.see("Grace: hello", self.LOST, "* Welcome, Ada L.!", "* Online (2): Grace, Ada L.")
        self.assertEqual((self.dialog(), self.root.title()), (None, "Chat - Ada L."))
        self.assertEqual((str(self.button["text"]), self.button.instate(["!disabled"])), ("Send", True))
        self.press_enter()
        grace.expect("Ada L.: half a sent")
        self.button.invoke()
        grace.send("welcome back")
        self.see("You: half a sent", "Grace: welcome back")

    def test_escape_in_its_dialog_leaves_the_window_as_it_was(self):
        self.lose()
        for _ in range(2):
            self.button.invoke()
            field = self.parts("TEntry")[0]
            self.focus(field)
            field.event_generate("<Escape>")
            self.assertIsNone(self.dialog())
            self.assertTrue(self.is_open())
            self.assertTrue(self.button.instate(["!disabled"]))
        self.see(self.LOST)

    def test_one_dialog_at_a_time_is_enough(self):
        self.lose()
        self.button.invoke()
        self.pump(self.dialog().winfo_viewable)
        self.root.lift()
        self.button.invoke()
        self.pump(lambda: self.root.tk.call("wm", "stackorder", self.dialog(), "isabove", "."))
        self.assertEqual([child.winfo_class() for child in self.root.winfo_children()].count("Toplevel"), 1)
        self.dialog().destroy()

    def test_the_window_closes_without_a_connection_and_with_the_dialog_open(self):
        self.lose()
        self.button.invoke()
        self.window.on_closing()
        self.assertFalse(self.is_open())


class ClosingTest(WindowCase):
    SOON = """
class Window(chat_client.ChatWindow):
    def __init__(self, *args):
        super().__init__(*args)
        self.root.after(300, self.soon)
    def soon(self):
        {}
chat_client.ChatWindow = Window"""

    def start_window(self, server, *options, soon):
        """Start the client as a program. A tenth of a second after its window has opened, it does `soon`."""
        return self.start_client(server, *options, setup=self.SOON.format(soon))

    def test_closing_the_window_ends_the_program(self):
        server = self.start_server()
        grace = self.visit(server, "Grace")
        close = "self.root.tk.eval(self.root.protocol('WM_DELETE_WINDOW'))"    # as the window manager does
        ada = self.start_window(server, "--nickname", "Ada", soon=close)
        grace.expect("* Ada joined", "* Ada left")
        ada.expect_end(0)

    @posix_only
    def test_ctrl_c_in_the_terminal_ends_the_program(self):
        server = self.start_server()
        grace = self.visit(server, "Grace")
        ada = self.start_window(server, "--nickname", "Ada", soon="print('open', flush=True)")
        ada.expect("open")
        ada.press_ctrl_c()
        grace.expect("* Ada joined", "* Ada left")
        ada.expect_end(0)

    def test_escape_or_closing_the_dialog_ends_the_program(self):
        server = self.start_server()
        for how in ("dialog.focus_force(); self.root.update(); dialog.event_generate('<Escape>')",
                    "self.root.tk.eval(dialog.protocol('WM_DELETE_WINDOW'))"):
            ada = self.start_window(server, soon="dialog = self.root.winfo_children()[-1]; " + how)
            ada.expect_end(0)

    def test_the_last_message_before_closing_always_arrives(self):
        server = self.start_server()
        grace = self.visit(server, "Grace")
        for number in range(20):
            self.open(server)
            grace.expect("* Ada joined")
            grace.send("unread")
            self.entry.insert(0, f"last words {number}")
            self.button.invoke()
            self.root.tk.eval(self.root.protocol("WM_DELETE_WINDOW"))    # as a window manager does
            self.close()
            grace.expect(f"Ada: last words {number}", "* Ada left")


################ The README
class ReadmeTest(ChatTest):
    """The walkthrough cannot go stale: what it quotes, shows and names is so."""
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.readme, cls.server_code, cls.client_code, cls.test_code = (
            cls.read(name) for name in ("README.md", "chat_server.py", "chat_client.py", "test_chat.py"))
        cls.blocks = re.findall(r"^```python\n(.*?)^```$", cls.readme, re.DOTALL | re.MULTILINE)

    @staticmethod
    def read(name):
        with open(os.path.join(HERE, name), encoding="utf-8") as file:
            return file.read()

    def rows(self, heading):
        """The rows of the first table after a heading, as lists of cells."""
        table = re.search(r"\n(\|.*?)\n\n", self.readme.split(f"\n{heading}\n")[1], re.DOTALL)[1]
        return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]

    def test_every_piece_of_code_stands_in_one_of_the_scripts(self):
        pieces = [block for block in self.blocks if ">>>" not in block and "# naive.py" not in block]
        self.assertGreater(len(pieces), 5)
        for piece in pieces:
            found = piece in self.server_code or piece in self.client_code
            self.assertTrue(found, f"not in the scripts:\n{piece}")

    def test_every_class_and_function_is_spoken_of(self):
        for script in (self.server_code, self.client_code):
            for node in ast.walk(ast.parse(script)):
                if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name[0] != "_":
                    self.assertRegex(self.readme, rf"\b{node.name}\b")

    def test_the_session_in_the_prompt_runs_as_it_is_printed(self):
        server = self.start_server()
        session = "".join(block for block in self.blocks if ">>>" in block)
        session = session.replace("7500", str(server.port))
        test = doctest.DocTestParser().get_doctest(session, {}, "README.md", "README.md", 0)
        said = []
        result = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
        self.assertEqual(result.failed, 0, "".join(said))
        self.assertGreater(result.attempted, 20)

    def test_the_limits_are_those_of_the_programs(self):
        stated = {}
        for _, limit, name in self.rows("### Limits"):
            figures = [int(figure) for figure in re.findall(r"\d+", limit.replace(",", ""))]
            stated[re.findall(r"`(\w+)`", name)[0]] = figures
        options = chat_server.Client.TCP_OPTIONS
        seconds = options["TCP_KEEPIDLE"] + options["TCP_KEEPINTVL"] * options["TCP_KEEPCNT"]
        self.assertEqual(stated, {
            "MAX_LINE": [chat_server.MAX_LINE, chat_server.MAX_LINE // 4],
            "MAX_NICKNAME": [chat_server.MAX_NICKNAME],
            "NICKNAME_TIMEOUT": [chat_server.NICKNAME_TIMEOUT],
            "RATE": [chat_server.RATE, chat_server.BURST],
            "LONG_LINE": [chat_server.LONG_LINE],
            "SEND_BUFFER": [chat_server.Client.SEND_BUFFER // 1024],
            "TCP_OPTIONS": [seconds],
            "JOIN_TIMEOUT": [chat_client.JOIN_TIMEOUT],
            "MAX_MESSAGES": [chat_client.MAX_MESSAGES]})
        self.assertEqual(chat_client.MAX_LINE, chat_server.MAX_LINE)
        self.assertEqual(chat_client.ChatClient.TCP_OPTIONS, options)

    def test_the_tests_that_it_names_exist(self):
        named = [row[3].strip("`") for row in self.rows("## Break it")]
        self.assertGreaterEqual(len(named), 10)
        for name in named:
            self.assertIn(f"def {name}(", self.test_code)

    def start_naive_server(self):
        """Run the README's naive server on a free port. Return the process, and a connector."""
        code, = [block for block in self.blocks if block.startswith("# naive.py\n")]
        port = str(ClientCase.free_port(self))
        naive = subprocess.Popen([sys.executable, "-u", "-c", code.replace("7500", port)],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
        self.addCleanup(naive.stderr.close)
        self.addCleanup(naive.stdout.close)
        self.addCleanup(naive.wait)
        self.addCleanup(naive.kill)

        def connect():
            with contextlib.suppress(OSError):    # it does not listen yet
                people.append(socket.create_connection((HOST, int(port)), DEADLINE))
                self.addCleanup(people[-1].close)
                return True

        def visit():
            wait_until(connect)
            return people[-1]
        people = []
        return naive, visit

    def test_the_naive_server_breaks_as_it_says(self):
        naive, visit = self.start_naive_server()
        ada = visit()
        ada.sendall(b"Ada: Hel")
        self.assertEqual(naive.stdout.readline(), "'Ada: Hel'\n")
        ada.sendall(b"lo\nGrace: I give you all my money.\n")
        self.assertEqual(naive.stdout.readline(), r"'lo\nGrace: I give you all my money.\n'" + "\n")
        ada.sendall(b"Ada: Caf\xc3")
        self.assertIn("UnicodeDecodeError", next(line for line in naive.stderr if "Error" in line))
        sleepy, bob = visit(), visit()    # Sleepy does not read
        bob.settimeout(1)
        with self.assertRaises(socket.timeout):
            for _ in range(100_000):
                bob.sendall(b"x" * 1000)


if __name__ == "__main__":
    unittest.main()
