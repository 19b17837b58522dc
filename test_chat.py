"""What the chat does, as tests: they read like a specification, and use real sockets and real processes.

Run them:   python -m unittest                  (all of them, in this folder)
            python -m unittest -k nickname      (those whose name holds a word)

Nothing is waited for with a bare sleep: whatever is expected has DEADLINE seconds to come. To know
that something does not come, a later line is sent as a marker, and all that is heard until then is compared.
The window is a real one too: without Tkinter or a screen its tests are skipped (Linux: xvfb-run python -m unittest).
"""
import ast
import collections
import doctest
import faulthandler
import functools
import gc
import os
import queue
import random
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
TOO_LONG = "* Not sent: a message may have at most 4096 bytes."
STOPPED = "* The server has stopped."
END = ""           # what Visitor.line returns when the server has closed the connection
posix_only = unittest.skipUnless(os.name == "posix", "Windows has no such signals")
proc_only = unittest.skipUnless(os.path.exists("/proc/self/status"), "needs Linux: /proc tells how much memory is used")
limits_only = unittest.skipUnless(resource, "Windows cannot limit the number of open files")


def setUpModule():
    if resource:    # macOS allows 256 open files by default; 300 visitors need more
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 2048 if hard == resource.RLIM_INFINITY else min(2048, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


################ Helpers
def wait_until(condition):
    """Return once condition() is true; fail if it does not become so."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("what was waited for did not happen")
        time.sleep(0.005)


def memory(pid, field="VmRSS"):
    """Return how much memory a process uses now, in KiB; VmHWM: the most that it ever used."""
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(field + r":\s+(\d+) kB", status.read()).group(1))


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

    def send(self, *lines):
        self.send_bytes("".join(line + "\n" for line in lines).encode())

    def send_bytes(self, data):
        self.socket.sendall(data)

    def line(self):
        """Return the next line without its ending, or END."""
        try:
            line = self.reader.readline()
        except (ConnectionResetError, ConnectionAbortedError):
            return END
        if line and not line.endswith(b"\n"):
            raise AssertionError(f"a line without an ending: {line!r}")
        return line.decode()[:-1]

    def lines_until(self, last):
        """Return all lines up to and including this one."""
        lines = [self.line()]
        while lines[-1] != last:
            if lines[-1] == END:
                raise AssertionError(f"the connection ended; {last!r} did not come, but {lines[-9:-1]}")
            lines.append(self.line())
        return lines

    def expect(self, *lines):
        """Assert that exactly these lines come next."""
        self.check.assertEqual([self.line() for _ in lines], list(lines))

    def expect_refusal(self):
        """Assert that the nickname is refused, with a reason."""
        self.check.assertRegex(self.line(), r"^NICK \S.*\S$")

    def join(self, nickname):
        """Go into the room under this nickname."""
        self.expect(PROMPT)
        self.send(nickname)
        self.expect(f"* Welcome, {nickname}!")
        self.check.assertRegex(self.line(), r"^\* Online \(\d+\): (.*, )?" + re.escape(nickname) + "$")

    def finish(self):
        """Say that nothing more will be sent; what comes can still be heard."""
        self.socket.shutdown(socket.SHUT_WR)

    def close(self):
        self.reader.close()
        self.socket.close()

    def reset(self):
        """Vanish without a goodbye: SO_LINGER with 0 seconds sends a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii" if os.name == "posix" else "hh", 1, 0))
        self.close()


class ServerProcess:
    """chat_server.py as a program on a free port.

    `setup` is Python code that runs first; `paused`: nobody reads its log until it stops;
    `checks`: Python's own, which show what is not closed, but take memory too.
    """
    def __init__(self, *options, setup="", paused=False, checks=True, folder=HERE):
        python = [sys.executable, "-X", "dev", "-W", "error"] if checks else [sys.executable]
        start = ["-c", f"{setup}\nimport chat_server\nchat_server.main()"] if setup else ["chat_server.py"]
        self.process = subprocess.Popen(
            [*python, *start, "--port", "0", *options], cwd=folder,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": ""})    # what it does not flush must not come
        self.watchdog = threading.Timer(60, self.process.kill)    # so that no test waits for ever
        self.watchdog.daemon = True
        self.watchdog.start()
        self.log = ""
        self.log_thread = threading.Thread(target=self.read_log)
        self.greeting = [self.process.stdout.readline() for _ in range(2)]
        found = re.search(r"listening on (\S+) port (\d+)", self.greeting[0])
        if not paused or not found:
            self.log_thread.start()
        if not found:
            self.process.kill()
            self.log_thread.join()
            raise AssertionError(f"The server did not start: {self.greeting} {self.log}")
        self.host, self.port = found.group(1), int(found.group(2))

    def read_log(self):
        for line in self.process.stderr:
            self.log += line

    def stop(self):
        """Stop it as Ctrl+C does, and assert that it ends as it should. Return how many seconds that took."""
        if self.process.returncode is not None:
            return 0
        if not self.log_thread.ident:    # nobody has read the log until now
            self.log_thread.start()
        started = time.monotonic()
        if os.name == "posix":
            self.process.send_signal(signal.SIGINT)
        else:
            self.process.terminate()
        try:
            self.process.wait(DEADLINE)
        finally:
            seconds = time.monotonic() - started
            self.kill()
        if (os.name == "posix" and self.process.returncode != 0) or "Traceback" in self.log or "Warning" in self.log:
            raise AssertionError(f"The server ended with status {self.process.returncode}: {self.log}")
        return seconds

    def kill(self):
        """End it as a power failure does."""
        self.process.kill()
        self.process.wait()
        self.log_thread.join()
        self.watchdog.cancel()
        self.watchdog.join()
        self.process.stdout.close()
        self.process.stderr.close()


class ChatTest(unittest.TestCase):
    """Starts servers and visitors, and cleans up after each test."""
    maxDiff = None

    def setUp(self):
        faulthandler.dump_traceback_later(60, exit=True, file=sys.__stderr__)    # if a test hangs, show where
        self.addCleanup(faulthandler.cancel_dump_traceback_later)
        crashes = []    # an error that ends a thread of the server fails the test that caused it
        patcher = mock.patch("threading.excepthook", lambda args: crashes.append(repr(args.exc_value)))
        patcher.start()
        self.addCleanup(self.assertEqual, crashes, [], "a thread crashed")
        self.addCleanup(patcher.stop)

    def start_server(self, host=HOST, rate=0):
        """Start a server in this process. Without a rate, a visitor may say as much as it likes."""
        server = chat_server.ChatServer(host, 0, rate)
        server.start()
        server.accept_thread = threading.Thread(target=server.accept_connections)
        server.accept_thread.start()
        self.addCleanup(self.stop_server, server)
        return server

    def stop_server(self, server):
        if not server.stopping:
            server.stopping = True
            socket.create_connection((server.host, server.port), DEADLINE).close()    # ends the wait in accept
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
        return visitors

    def room(self, *nicknames, rate=0):
        """Start a server in this process and return visitors who are in its room."""
        return self.fill_room(self.start_server(rate=rate), *nicknames)


################ The protocol: lines
class LinesTest(ChatTest):
    def setUp(self):
        super().setUp()
        self.ada, self.grace = self.room("Ada", "Grace")

    def assert_heard(self, data, *lines):
        """Assert that Grace hears exactly these lines when Ada sends these bytes."""
        self.ada.send_bytes(data + b"marker\n")
        self.grace.expect(*lines, "Ada: marker")

    def test_a_message_goes_to_everybody_else(self):
        self.ada.send("hello")
        self.grace.expect("Ada: hello")
        self.grace.send("good morning")
        self.ada.expect("Grace: good morning")

    def test_a_sender_does_not_hear_itself(self):
        self.ada.send("hello")
        self.grace.expect("Ada: hello")
        self.ada.send("/who")
        self.ada.expect("* Online (2): Ada, Grace")

    def test_two_lines_in_one_packet_are_two_messages(self):
        self.assert_heard(b"one\ntwo\n", "Ada: one", "Ada: two")

    def test_a_message_may_come_in_several_packets(self):
        for piece in (b"he", b"ll", b"o"):
            self.ada.send_bytes(piece)
            self.grace.send("/who")    # answered while Ada's line is unfinished: nothing of it has been sent on
            self.grace.expect("* Online (2): Ada, Grace")
        self.assert_heard(b"\n", "Ada: hello")

    def test_a_packet_may_end_in_the_middle_of_the_next_message(self):
        self.ada.send_bytes(b"one\ntw")
        self.grace.expect("Ada: one")
        self.assert_heard(b"o\n", "Ada: two")

    def test_a_character_may_be_cut_in_half_by_a_packet(self):
        for byte in "é漢🙂\n".encode():
            self.ada.send_bytes(bytes([byte]))
        self.grace.expect("Ada: é漢🙂")

    def test_a_carriage_return_before_the_line_ending_is_dropped(self):
        self.assert_heard(b"one\r\ntwo\r\n", "Ada: one", "Ada: two")

    def test_a_last_line_without_an_ending_counts(self):
        self.ada.send_bytes(b"one\nlast words")
        self.ada.finish()
        self.grace.expect("Ada: one", "Ada: last words", "* Ada left")

    def test_empty_and_blank_lines_are_ignored(self):
        self.assert_heard(b"\n\r\n \n\t \n\x07\n\xe3\x80\x80\n")

    def test_spaces_inside_and_around_a_message_stay(self):
        self.assert_heard(b"  if x:    y \n", "Ada:   if x:    y ")


################ The protocol: how long a line may be
class LengthTest(ChatTest):
    def setUp(self):
        super().setUp()
        self.ada, self.grace = self.room("Ada", "Grace")

    def assert_passes(self, text, ending=b"\n"):
        self.ada.send_bytes(text.encode() + ending)
        self.grace.expect(f"Ada: {text}")

    def assert_refused(self, data):
        """Assert that Ada alone hears that this line is too long, and that she goes on talking."""
        self.ada.send_bytes(data + b"marker\n")
        self.ada.expect(TOO_LONG)
        self.grace.expect("Ada: marker")
        self.ada.send("/who")
        self.ada.expect("* Online (2): Ada, Grace")

    def test_4096_bytes_pass(self):
        self.assert_passes("x" * 4096)

    def test_4096_bytes_and_a_carriage_return_pass(self):
        self.assert_passes("x" * 4096, b"\r\n")

    def test_4096_bytes_pass_when_a_packet_ends_before_the_line_ending(self):
        self.ada.send_bytes(b"x" * 4096 + b"\r")
        self.grace.send("/who")
        self.grace.expect("* Online (2): Ada, Grace")
        self.ada.send_bytes(b"\n")
        self.grace.expect("Ada: " + "x" * 4096)

    def test_1024_characters_of_four_bytes_pass(self):
        self.assert_passes("🙂" * 1024)

    def test_4097_bytes_do_not_pass(self):
        self.assert_refused(b"x" * 4097 + b"\n")

    def test_4097_bytes_and_a_carriage_return_do_not_pass(self):
        self.assert_refused(b"x" * 4097 + b"\r\n")

    def test_a_line_of_many_packets_is_refused_once(self):
        self.assert_refused(b"x" * 300000 + b"\n")

    def test_a_line_that_is_too_long_stays_so_when_its_ending_comes_later(self):
        for start in (b"x" * 5000, b"x" * 4096 + b"\ry"):    # of which the server keeps only a part
            self.ada.send_bytes(start)
            self.grace.send("/who")    # gives the server the time to read Ada's bytes
            self.grace.expect("* Online (2): Ada, Grace")
            self.assert_refused(b"\n")

    def test_a_last_line_that_is_too_long_does_not_pass(self):
        self.ada.send_bytes(b"x" * 100000)
        self.ada.finish()
        self.ada.expect(TOO_LONG, END)
        self.grace.expect("* Ada left")

    @proc_only
    def test_an_endless_line_takes_no_memory(self):
        program = self.start_program()
        ada, grace = self.fill_room(program, "Ada", "Grace")
        before = memory(program.process.pid, "VmHWM")
        for _ in range(64):
            ada.send_bytes(b"x" * 1024 * 1024)
            self.assertLess(memory(program.process.pid, "VmHWM") - before, 4096)    # KiB
        ada.send("", "still here")
        ada.expect(TOO_LONG)
        grace.expect("Ada: still here")


################ The protocol: what a line may hold
class CleaningTest(ChatTest):
    def setUp(self):
        super().setUp()
        self.ada, self.grace = self.room("Ada", "Grace")

    def assert_heard(self, sent, heard):
        self.ada.send_bytes(sent + b"\n")
        self.grace.expect(f"Ada: {heard}")

    def test_invalid_utf8_is_replaced(self):
        self.assert_heard(b"caf\xe9 \xff\xc3", "caf\ufffd \ufffd\ufffd")

    def test_control_characters_go(self):
        for code in [*range(0x00, 0x09), *range(0x0b, 0x20), *range(0x7f, 0xa0)]:
            self.assert_heard(f"a{chr(code)}b".encode(), "ab")

    def test_a_message_cannot_colour_a_terminal(self):
        self.assert_heard(b"\x1b[31mred\x1b[0m", "[31mred[0m")

    def test_line_and_paragraph_separators_go(self):
        self.assert_heard("a\u2028b\u2029c\u0085d".encode(), "abcd")

    def test_what_turns_text_around_goes(self):
        for char in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069":
            self.assert_heard(f"a{char}b".encode(), "ab")

    def test_a_tab_becomes_a_space(self):
        self.assert_heard(b"a\tb", "a b")

    def test_emoji_joiners_and_variation_selectors_stay(self):
        for text in ("👩\u200d💻", "❤\ufe0f", "کتاب\u200cها"):
            self.assert_heard(text.encode(), text)

    def test_nobody_can_speak_as_somebody_else(self):
        self.assert_heard(b"Grace: I am Grace", "Grace: I am Grace")
        self.assert_heard(b"* Grace left", "* Grace left")
        self.assert_heard(b"hi\rGrace: hi", "hiGrace: hi")
        self.assert_heard("hi\u2028Grace: hi\u0085".encode(), "hiGrace: hi")


################ The protocol: nicknames
class NicknameTest(ChatTest):
    def setUp(self):
        super().setUp()
        self.server = self.start_server()

    def assert_refused(self, *nicknames):
        """Assert that these nicknames are refused, and that another one is accepted afterwards."""
        visitor = self.visit(self.server)
        visitor.expect(PROMPT)
        for nickname in nicknames:
            with self.subTest(nickname):
                visitor.send(nickname)
                visitor.expect_refusal()
        visitor.send("Somebody")
        visitor.expect("* Welcome, Somebody!")

    def assert_accepted(self, sent, nickname):
        visitor = self.visit(self.server)
        visitor.expect(PROMPT)
        visitor.send(sent)
        visitor.expect(f"* Welcome, {nickname}!")

    def test_a_nickname_is_asked_for_by_a_keyword(self):
        self.visit(self.server).expect("NICK Choose a nickname.")

    def test_a_nickname_has_1_to_20_characters(self):
        self.assert_accepted("x" * 20, "x" * 20)
        self.assert_accepted("漢" * 20, "漢" * 20)
        self.assert_accepted("y", "y")
        self.assert_refused("", " ", "z" * 21, "z" * 5000)

    def test_the_characters_of_a_nickname_are_counted_after_cleaning(self):
        self.assert_accepted("\x07" * 30 + "Ada" + "\u202e" * 30, "Ada")
        self.assert_refused("\x07", "\u202e\x1b")

    def test_white_space_in_a_nickname_becomes_one_space(self):
        self.assert_accepted(" \t Ada  \t \u3000 Lovelace ", "Ada Lovelace")

    def test_a_nickname_has_no_colon(self):
        self.assert_refused("Ada:", ":", "a:b", "a\uff1ab")

    def test_a_nickname_does_not_start_with_a_star_or_a_slash(self):
        self.assert_refused("*", "* Ada", "*Ada", "/Ada", "/who", "\uff0aAda", "\uff0fAda",
                            "\u200b * Ada", "\u200b /Ada")
        self.assert_accepted("Ada*/", "Ada*/")

    def test_nobody_is_called_you(self):
        self.assert_refused("you", "You", "YOU", "\uff39\uff4f\uff55", "Y\u200bou", "\u200b you")
        self.assert_accepted("Young", "Young")

    def test_an_invisible_nickname_is_refused(self):
        self.assert_refused("\u200b", "\u200d\ufe0f", "\u2060")

    def test_a_taken_nickname_is_refused_however_it_is_written(self):
        self.fill_room(self.server, "Ada", "Straße", "Ade\u0301")
        self.assert_refused("Ada", "ada", "ADA", "\uff21\uff44\uff41", "A\u200bda", "Ada\ufe0f", "\u200dAda",
                            "STRASSE", "Ad\u00e9", "  Ada  ", "A\x07da", "\u200b Ada", "Ada \u200b")

    def test_a_refusal_names_the_reason(self):
        self.visit(self.server, "Ada")
        visitor = self.visit(self.server)
        visitor.expect(PROMPT)
        visitor.send("Ada")
        self.assertRegex(visitor.line(), "^NICK .*called Ada already")
        visitor.send("Ada:")
        self.assertRegex(visitor.line(), "^NICK .*colon")

    def test_a_refused_visitor_is_not_in_the_room(self):
        ada, visitor = self.visit(self.server, "Ada"), self.visit(self.server)
        visitor.expect(PROMPT)
        visitor.send("ada")
        visitor.expect_refusal()
        ada.send("hello", "/who")
        ada.expect("* Online (1): Ada")
        visitor.send("Grace")
        visitor.expect("* Welcome, Grace!", "* Online (2): Ada, Grace")

    def test_a_nickname_is_free_again_when_its_owner_has_left(self):
        ada, grace = self.fill_room(self.server, "Ada", "Grace")
        ada.close()
        grace.expect("* Ada left")
        self.visit(self.server, "Ada")
        grace.expect("* Ada joined")

    def test_a_nickname_and_messages_may_come_in_one_packet(self):
        grace, visitor = self.visit(self.server, "Grace"), self.visit(self.server)
        visitor.send("Grace", "Ada", "hello", "/who")
        visitor.expect(PROMPT)
        visitor.expect_refusal()
        visitor.expect("* Welcome, Ada!", "* Online (2): Grace, Ada", "* Online (2): Grace, Ada")
        grace.expect("* Ada joined", "Ada: hello")

    def test_of_fifty_who_want_one_nickname_at_the_same_moment_exactly_one_gets_it(self):
        for nickname in ("Ada", "Grace", "Edsger"):
            visitors = [self.visit(self.server) for _ in range(50)]
            for visitor in visitors:
                visitor.expect(PROMPT)
            with self.server.lock:    # nobody gets in yet, so that all of them ask before the first one is in
                for visitor in visitors:
                    visitor.send(nickname)
            answers = [visitor.line() for visitor in visitors]
            self.assertEqual(answers.count(f"* Welcome, {nickname}!"), 1)
            self.assertEqual(sum(answer.startswith("NICK ") for answer in answers), 49)
            for visitor in visitors:
                visitor.close()

    def test_who_chooses_no_nickname_in_time_is_shown_out(self):
        with mock.patch.object(chat_server, "NICKNAME_TIMEOUT", 0.2):
            ada, slow = self.visit(self.server, "Ada"), self.visit(self.server)
            slow.expect(PROMPT, "* No nickname came within 0.2 seconds.", END)
            grace = self.visit(self.server, "Grace")
            ada.expect("* Grace joined")    # Ada has a nickname and stays; of the slow one she hears nothing
            ada.send("hello")
            grace.expect("Ada: hello")

    def test_dribbling_bytes_does_not_replace_a_nickname(self):
        with mock.patch.object(chat_server, "NICKNAME_TIMEOUT", 0.2):
            slow = self.visit(self.server)
            wait_until(lambda: not self.dribble(slow))
            slow.expect(PROMPT, "* No nickname came within 0.2 seconds.", END)

    def test_those_without_a_nickname_are_shown_out_while_many_others_connect(self):
        with mock.patch.object(chat_server, "NICKNAME_TIMEOUT", 0.2):
            slow = self.visit(self.server)
            wait_until(lambda: not self.dribble(slow) or self.visit(self.server).close())
            slow.expect(PROMPT, "* No nickname came within 0.2 seconds.", END)

    def dribble(self, visitor):
        """Send one byte; return whether the connection still stands."""
        try:
            visitor.send_bytes(b"x")
        except OSError:
            return False
        return True


################ The protocol: the room
class RoomTest(ChatTest):
    def test_the_welcome_names_those_who_are_online_in_the_order_of_joining(self):
        server = self.start_server()
        for nickname, online in (("Grace", "(1): Grace"), ("Ada", "(2): Grace, Ada"), ("Bob", "(3): Grace, Ada, Bob")):
            visitor = self.visit(server)
            visitor.expect(PROMPT)
            visitor.send(nickname)
            visitor.expect(f"* Welcome, {nickname}!", f"* Online {online}")

    def test_who_joins_again_is_last_in_the_list(self):
        server = self.start_server()
        ada, grace = self.fill_room(server, "Ada", "Grace")
        ada.close()
        grace.expect("* Ada left")
        ada = self.visit(server, "Ada")
        ada.send("/who")
        ada.expect("* Online (2): Grace, Ada")

    def test_the_welcome_comes_before_any_message(self):
        server = self.start_server()
        ada = self.visit(server, "Ada")
        talking = threading.Event()

        def talk():
            while not talking.is_set():
                ada.send(*["hello"] * 20)
        talker = threading.Thread(target=talk)
        talker.start()
        self.addCleanup(talker.join)
        self.addCleanup(talking.set)
        for number in range(20):
            visitor = self.visit(server, f"Visitor {number}")    # asserts the welcome and the list
            visitor.lines_until("Ada: hello")
            visitor.close()

    def test_without_a_nickname_nothing_is_heard(self):
        server = self.start_server()
        ada, grace = self.fill_room(server, "Ada", "Grace")
        visitor = self.visit(server)
        visitor.expect(PROMPT)
        ada.send("hello")
        grace.expect("Ada: hello")
        visitor.send("Bob")
        visitor.expect("* Welcome, Bob!", "* Online (3): Ada, Grace, Bob")
        ada.send("hello Bob")
        visitor.expect("Ada: hello Bob")

    def test_joining_and_leaving_are_announced_exactly_once(self):
        server = self.start_server()
        ada, bob = self.fill_room(server, "Ada", "Bob")
        for leave in (Visitor.close, Visitor.reset, Visitor.finish, lambda visitor: visitor.send("/quit")):
            grace = self.visit(server, "Grace")
            ada.expect("* Grace joined")
            leave(grace)
            ada.expect("* Grace left")
            bob.send("marker")
            ada.expect("Bob: marker")
            grace.close()

    def test_who_leaves_without_a_nickname_is_not_announced(self):
        server = self.start_server()
        ada, bob = self.fill_room(server, "Ada", "Bob")
        visitor = self.visit(server)
        visitor.finish()
        visitor.expect(PROMPT, END)
        bob.send("marker")
        ada.expect("Bob: marker")

    def test_a_message_sent_right_before_closing_arrives(self):
        server = self.start_server()
        ada = self.visit(server, "Ada")
        for number in range(100):
            grace = self.visit(server, "Grace")
            grace.send(f"last words {number}")
            grace.close()
            ada.expect("* Grace joined", f"Grace: last words {number}", "* Grace left")


################ The protocol: commands
class CommandTest(ChatTest):
    def test_who_is_answered_to_the_one_who_asks(self):
        ada, grace = self.room("Ada", "Grace")
        ada.send("/who", "marker")
        ada.expect("* Online (2): Ada, Grace")
        grace.expect("Ada: marker")

    def test_the_answer_to_who_arrives_after_the_sending_side_is_closed(self):
        ada, = self.room("Ada")
        ada.send("/who")
        ada.finish()
        ada.expect("* Online (1): Ada", END)

    def test_quit_closes_the_connection(self):
        ada, grace = self.room("Ada", "Grace")
        ada.send("/quit")
        ada.expect(END)
        grace.expect("* Ada left")

    def test_quit_works_without_a_nickname(self):
        server = self.start_server()
        ada, visitor = self.visit(server, "Ada"), self.visit(server)
        visitor.send("/quit")
        visitor.expect(PROMPT, END)
        ada.send("/who")
        ada.expect("* Online (1): Ada")

    def test_messages_before_quit_in_one_packet_arrive_and_those_after_it_do_not(self):
        ada, grace, bob = self.room("Ada", "Grace", "Bob")
        ada.send("one", "two", "/quit", "three")
        grace.expect("Ada: one", "Ada: two", "* Ada left")
        ada.expect(END)
        bob.send("marker")
        grace.expect("Bob: marker")

    def test_an_unknown_command_is_answered_to_its_sender_alone(self):
        ada, grace = self.room("Ada", "Grace")
        ada.send("/dance with me", "/WHO", "/", "marker")
        ada.expect("* Unknown command /dance. Commands: /who, /quit",
                   "* Unknown command /WHO. Commands: /who, /quit",
                   "* Unknown command /. Commands: /who, /quit")
        grace.expect("Ada: marker")

    def test_a_slash_inside_a_message_is_no_command(self):
        ada, grace = self.room("Ada", "Grace")
        ada.send("and/or", " /quit")
        grace.expect("Ada: and/or", "Ada:  /quit")


################ The server: many who talk
class CrowdTest(ChatTest):
    def test_forty_who_talk_at_once_lose_nothing_and_all_hear_one_order(self):
        nicknames = [f"Visitor {number}" for number in range(40)]
        visitors = self.room(*nicknames)
        in_threads(lambda visitor: [visitor.send(f"message {number}") for number in range(25)], visitors)
        heard = [[visitor.line() for _ in range(39 * 25)] for visitor in visitors]

        def said_by_others(lines, *names):
            return [line for line in lines if line.partition(": ")[0] not in names]
        for listener, lines in zip(nicknames, heard):
            for nickname in nicknames:
                if nickname != listener:    # nothing is lost, and what one visitor says stays in order
                    self.assertEqual([line for line in lines if line.startswith(nickname + ": ")],
                                     [f"{nickname}: message {number}" for number in range(25)])
            for first, order in zip(nicknames[:2], heard):    # all hear what these two heard, in the same order
                self.assertEqual(said_by_others(lines, first, listener), said_by_others(order, first, listener))

    def assert_a_suspended_visitor_is_shown_out(self):
        ada, grace, sleepy = self.room("Ada", "Grace", "Sleepy")    # from now on, Sleepy does not read
        slowest, heard = 0, []
        for number in range(4000):    # of 4 KiB each; the kernel keeps far less than that for one connection
            started = time.monotonic()
            ada.send("x" * 4090)
            heard += grace.lines_until("Ada: " + "x" * 4090)
            slowest = max(slowest, time.monotonic() - started)
            if "* Sleepy left (too slow)" in heard:
                break
        for _ in range(5):
            ada.send("and on")
            heard += grace.lines_until("Ada: and on")
        self.assertEqual([line for line in heard if not line.startswith("Ada: ")], ["* Sleepy left (too slow)"])
        self.assertLess(slowest, 1)    # second; a server that waits for Sleepy would take for ever
        ada.expect("* Sleepy left (too slow)")
        ada.send("/who")
        ada.expect("* Online (2): Ada, Grace")

    def test_who_does_not_read_is_shown_out_and_nobody_waits(self):
        self.assert_a_suspended_visitor_is_shown_out()

    def test_who_does_not_read_is_shown_out_where_there_is_no_MSG_DONTWAIT(self):
        with mock.patch.object(chat_server, "MSG_DONTWAIT", 0):    # as on Windows
            self.assert_a_suspended_visitor_is_shown_out()

    def test_who_has_left_is_not_heard_any_more(self):
        server = self.start_server()
        grace, _ = self.fill_room(server, "Grace", "Ada")
        client = list(server.connected_clients)[1]
        server.disconnect_client(client)
        server.handle_lines(client, [b"hello"])
        self.visit(server, "Alan")
        grace.expect("* Ada left", "* Alan joined")

    def test_what_fits_only_in_part_counts_as_too_slow(self):
        server = self.start_server()
        sleepy, = self.fill_room(server, "Sleepy")
        client, = server.connected_clients
        sent = 0
        with self.assertRaises(BlockingIOError):
            while sent < 10 ** 8:
                client.send_at_once(b"x" * 10_000)
                sent += 10_000
        server.disconnect_client(client)
        self.assertGreaterEqual(len(sleepy.reader.read()), sent)

    def test_nothing_follows_half_a_line_to_one_who_was_too_slow(self):
        server = self.start_server()
        sleepy, = self.fill_room(server, "Sleepy")
        client, = server.connected_clients
        with server.lock:    # the moment between "too slow" and being out of the room, made long
            server.outbox.put(([client], b"x" * 8 * 1024 * 1024))
            wait_until(lambda: "disconnect_client" in [
                frame.f_code.co_name for frame, _ in traceback.walk_stack(sys._current_frames()[server.deliver_thread.ident])])
            heard = b""
            sleepy.socket.settimeout(0.2)
            try:
                while True:    # until the kernel has room again
                    heard += sleepy.socket.recv(1024 * 1024)
            except socket.timeout:
                pass
            server.outbox.put(([client], b"Bob: pay 10\n"))
        sleepy.socket.settimeout(DEADLINE)
        data = sleepy.socket.recv(1024)
        while data:
            heard += data
            data = sleepy.socket.recv(1024)
        self.assertEqual(heard.strip(b"x"), b"")

    def assert_the_room_outlives_one_who_asks_and_does_not_read(self):
        ada, grace, sleepy = self.room("Ada", "Grace", "Sleepy")

        def ask():
            try:
                while True:
                    sleepy.send_bytes(b"/dance" * 100 + b"\n" + b"/who\n" * 5000)
            except OSError:
                pass    # shown out
        in_threads(lambda function: function(), [ask])
        ada.expect("* Sleepy left (too slow)")
        ada.send("hello")
        grace.expect("* Sleepy left (too slow)", "Ada: hello")

    def test_who_asks_and_does_not_read_the_answers_is_shown_out(self):
        self.assert_the_room_outlives_one_who_asks_and_does_not_read()

    def test_who_asks_and_does_not_read_is_shown_out_where_there_is_no_MSG_DONTWAIT(self):
        with mock.patch.object(chat_server, "MSG_DONTWAIT", 0):
            self.assert_the_room_outlives_one_who_asks_and_does_not_read()

    def assert_a_late_reply_harms_nobody(self):
        server = self.start_server()
        ada, grace, bob = self.fill_room(server, "Ada", "Grace", "Bob")
        gone = list(server.connected_clients)[2]
        server.disconnect_client(gone)
        server.disconnect_client(gone)    # as when two threads find out at once: announced once
        bob.expect(END)
        wait_until(lambda: gone.socket.fileno() == -1)
        server.reply(gone, "* late")    # as when Bob's own thread was still busy with what Bob had asked
        ada.send("hello")
        grace.expect("* Bob left", "Ada: hello")

    def test_a_reply_to_one_who_is_gone_harms_nobody(self):
        self.assert_a_late_reply_harms_nobody()

    def test_a_reply_to_one_who_is_gone_harms_nobody_where_there_is_no_MSG_DONTWAIT(self):
        with mock.patch.object(chat_server, "MSG_DONTWAIT", 0):
            self.assert_a_late_reply_harms_nobody()

    def test_where_there_is_no_MSG_DONTWAIT_messages_arrive_too(self):
        with mock.patch.object(chat_server, "MSG_DONTWAIT", 0):
            ada, grace = self.room("Ada", "Grace")
            for number in range(100):
                ada.send(f"message {number}")
                grace.expect(f"Ada: message {number}")

    def test_300_who_connect_and_say_nothing_disturb_nobody(self):
        server = self.start_server()
        ada, grace = self.fill_room(server, "Ada", "Grace")
        silent = [self.visit(server) for _ in range(300)]
        for visitor in silent:
            visitor.expect(PROMPT)
        started = time.monotonic()
        for _ in range(20):
            ada.send("hello")
            grace.expect("Ada: hello")
            grace.send("/who")
            grace.expect("* Online (2): Ada, Grace")
        self.assertLess(time.monotonic() - started, 2)

    def test_random_bytes_and_resets_leave_the_room_working(self):
        server = self.start_server()
        ada, grace = self.fill_room(server, "Ada", "Grace")
        dice = random.Random(7500)
        pieces = "\n \r \t / : * \x1b[31m \u202e \u2028 \u2066 🙂".encode().split(b" ")
        pieces += [bytes([byte]) for byte in range(256)]
        for number in range(30):
            visitor = self.visit(server)
            noise = b"".join(dice.choices(pieces, k=3000))
            visitor.send_bytes(b"Noise %d\n" % number + noise.replace(b"/quit", b""))
            (visitor.reset if number % 2 else visitor.finish)()
        wait_until(lambda: len(server.connected_clients) == 2)
        ada.send("still here")
        for line in grace.lines_until("Ada: still here"):
            self.assertRegex(line, "^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*$")
            self.assertRegex(line, r"^(Noise \d+: |Ada: still here$|\* Noise \d+ (joined|left)$)")


################ The server: how much one may say
class FloodTest(ChatTest):
    def test_what_is_too_fast_is_spread_out_and_nothing_is_lost(self):
        ada, grace, flooder = self.room("Ada", "Grace", "Flooder", rate=100)
        started = time.monotonic()
        flooder.send(*map(str, range(300)))
        arrivals, lines = [], []
        while len(lines) < 301:
            if len(lines) == 220:
                ada.send("may I?")
                asked = time.monotonic()
            lines.append(grace.line())
            arrivals.append(time.monotonic() - started)
        place = lines.index("Ada: may I?")
        self.assertLess(started + arrivals[place] - asked, 0.5)
        self.assertLess(place, 290)                # Ada does not wait until the flood is over
        del lines[place], arrivals[place]
        self.assertEqual(lines, [f"Flooder: {number}" for number in range(300)])
        self.assertLess(arrivals[199], 0.9)        # two seconds' worth passes at once (spread out it would take 2 s)
        self.assertGreater(arrivals[250], 0.45)    # and the rest in the time that it takes
        self.assertGreater(arrivals[299], 0.9)

    def test_a_class_that_types_is_never_slowed_down(self):
        ada, grace = self.room("Ada", "Grace", rate=chat_server.RATE)
        started = time.monotonic()
        for number in range(40):
            ada.send(str(number))
            grace.expect(f"Ada: {number}")
        self.assertLess(time.monotonic() - started, 0.7)
        self.assertEqual(chat_server.RATE, 20)

    def test_a_rate_of_0_is_no_limit(self):
        ada, grace = self.room("Ada", "Grace", rate=0)
        started = time.monotonic()
        ada.send(*map(str, range(5000)))
        grace.expect(*[f"Ada: {number}" for number in range(5000)])
        self.assertLess(time.monotonic() - started, 5)


################ The server: its sockets and threads
class SocketTest(ChatTest):
    def server_side(self):
        server = self.start_server()
        self.visit(server, "Ada")
        return next(iter(server.connected_clients)).socket

    def test_small_messages_do_not_wait(self):
        self.assertTrue(self.server_side().getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def test_a_computer_that_vanished_is_noticed(self):
        client_socket = self.server_side()
        self.assertTrue(client_socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 60000)):
            if hasattr(socket, option):
                self.assertEqual(client_socket.getsockopt(socket.IPPROTO_TCP, getattr(socket, option)), value, option)

    def test_the_kernel_keeps_256_kib_for_one_who_reads_slowly(self):
        with socket.socket() as another:    # Linux doubles what it is asked for, and has a maximum
            another.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * 1024)
            expected = another.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self.assertEqual(self.server_side().getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), expected)

    def test_stop_leaves_no_thread_alive(self):
        before = set(threading.enumerate())
        server = self.start_server()
        ada, grace = self.fill_room(server, "Ada", "Grace")
        nameless = self.visit(server)
        nameless.expect(PROMPT)
        self.stop_server(server)
        self.assertEqual(set(threading.enumerate()) - before, set())
        for visitor in (ada, grace, nameless):
            visitor.expect(STOPPED, END)

    def test_out_of_threads_a_connection_is_closed_and_the_server_goes_on(self):
        server = self.start_server()
        ada = self.visit(server, "Ada")
        with self.assertLogs(level="ERROR") as log:
            with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("can't start new thread")):
                for visitor in [self.visit(server) for _ in range(3)]:
                    visitor.expect(END)
        self.assertEqual(log.output, ["ERROR:root:A client could not connect: can't start new thread"])
        grace = self.visit(server, "Grace")
        grace.send("hello")
        ada.expect("* Grace joined", "Grace: hello")

    def test_a_host_with_a_colon_is_ipv6(self):
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            self.skipTest("this computer has no ::1")
        ada, grace = self.fill_room(self.start_server("::1"), "Ada", "Grace")
        ada.send("hello")
        grace.expect("Ada: hello")


################ The program: starting
class StartTest(ChatTest):
    def run_program(self, *options):
        """Run the server with options with which it ends by itself. Return its status, stdout and stderr."""
        done = subprocess.run([sys.executable, "-X", "dev", "-W", "error", "chat_server.py", *options], cwd=HERE,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=DEADLINE,
                              encoding="utf-8", errors="replace")
        return done.returncode, done.stdout, done.stderr

    def test_the_first_line_says_where_it_listens_and_the_second_how_to_join(self):
        program = self.start_program()
        self.assertIn(f"listening on 127.0.0.1 port {program.port}", program.greeting[0])
        self.assertRegex(program.greeting[1], rf"[Oo]nly this computer.* python chat_client\.py --port {program.port}$")
        self.assertIn("--host 0.0.0.0", program.process.stdout.readline())    # how to let others in
        self.visit(program, "Ada")

    def test_open_to_the_network_it_prints_the_command_for_the_other_computers(self):
        program = self.start_program("--host", "0.0.0.0")
        self.assertRegex(program.greeting[1], rf"python chat_client\.py --port {program.port} --host \S")
        self.assertNotIn("0.0.0.0", program.greeting[1])
        program.host = HOST
        self.visit(program, "Ada")

    def test_the_rate_is_an_option(self):
        ada, grace = self.fill_room(self.start_program("--rate", "0"), "Ada", "Grace")
        started = time.monotonic()
        ada.send(*map(str, range(1000)))
        grace.expect(*[f"Ada: {number}" for number in range(1000)])
        self.assertLess(time.monotonic() - started, 5)    # seconds; with the default rate 48

    def test_a_port_in_use_is_said_in_one_line(self):
        with socket.create_server((HOST, 0)) as other:
            port = str(other.getsockname()[1])
            status, output, errors = self.run_program("--port", port)
        self.assertEqual((status, output), (1, ""))
        self.assertRegex(errors, rf"\A.*\b{port}\b.*\n\Z")

    def test_a_bad_host_is_said_in_one_line(self):
        status, output, errors = self.run_program("--host", "203.0.113.1", "--port", "0")    # nobody's address (RFC 5737)
        self.assertEqual((status, output), (1, ""))
        self.assertRegex(errors, r"\A.*203\.0\.113\.1.*\n\Z")

    def test_a_host_that_cannot_be_a_name_is_said_in_one_line(self):
        status, output, errors = self.run_program("--host", "é..b", "--port", "0")    # bind raises no OSError for it
        self.assertEqual((status, output), (1, ""))
        self.assertRegex(errors, r"\A.*\.\.b.*\n\Z")

    def test_a_port_out_of_range_or_a_negative_rate_is_refused(self):
        for options in (("--port", "65536"), ("--port", "-1"), ("--rate", "-1", "--port", "0"), ("--port", "x")):
            status, output, errors = self.run_program(*options)
            self.assertEqual((status, output), (2, ""))
            self.assertIn("error: ", errors)
            self.assertNotIn("Traceback", errors)

    def test_help_shows_each_option_and_its_default(self):
        status, output, errors = self.run_program("--help")
        self.assertEqual((status, errors), (0, ""))
        options = re.split(r"\n  (?=-)", output)
        for option, default in (("--host", "127.0.0.1"), ("--port", "7500"), ("--rate", "20"), ("--quiet", "False")):
            text, = [" ".join(text.split()) for text in options if text.startswith(option)]
            self.assertIn(f"(default: {default})", text)


################ The program: its log
class LogTest(ChatTest):
    def chat(self, *options):
        """Let somebody join, speak and leave. Return what the server logged."""
        program = self.start_program(*options)
        grace = self.visit(program, "Grace")
        ada = self.visit(program, "Ada")
        ada.send("hello")
        ada.finish()
        grace.expect("* Ada joined", "Ada: hello", "* Ada left")
        grace.send("/quit")
        grace.expect(END)
        program.stop()
        return program.log

    def test_the_log_shows_joins_messages_and_departures_with_the_time(self):
        lines = self.chat().splitlines()
        for line in lines:
            self.assertRegex(line, r"^\d\d:\d\d:\d\d \S")
        for what in ("Grace joined", "Ada joined", "Ada: hello", "Ada left", "Grace left"):
            self.assertEqual([line[9:] for line in lines].count(what), 1, what)

    def test_quiet_logs_none_of_it(self):
        self.assertEqual(self.chat("--quiet"), "")

    def test_a_paused_console_does_not_stop_the_room(self):
        program = self.start_program("--rate", "0", paused=True)
        ada, grace = self.fill_room(program, "Ada", "Grace")
        for _ in range(200):    # of 4 KB: several times what a pipe holds
            ada.send("x" * 4000)
            grace.expect("Ada: " + "x" * 4000)
        program.stop()
        self.assertEqual(program.log.count("Ada: " + "x" * 4000), 200)


################ The program: its limits
class LimitsTest(ChatTest):
    def start_with_few_files(self, setup=""):
        return self.start_program(setup="import resource; limit = resource.RLIMIT_NOFILE\n"
                                        f"resource.setrlimit(limit, (20, resource.getrlimit(limit)[1]))\n{setup}")

    def let_somebody_leave(self, program):
        visitor = self.visit(program)
        visitor.send("/quit")
        visitor.expect(PROMPT, END)
        wait_until(lambda: " left" in program.log)

    @limits_only
    def test_out_of_file_descriptors_it_logs_once_and_the_room_goes_on(self):
        program = self.start_with_few_files()
        self.let_somebody_leave(program)
        ada, grace = self.fill_room(program, "Ada", "Grace")
        crowd = [self.visit(program) for _ in range(30)]
        wait_until(lambda: "could not connect" in program.log)
        end = time.monotonic() + 0.5    # seconds; the server tries again every 0.1 s
        while time.monotonic() < end:
            ada.send("hello")
            grace.send("hello")
            grace.expect("Ada: hello")
            ada.expect("Grace: hello")
        self.assertEqual(program.log.count("could not connect"), 1)
        for visitor in crowd:
            visitor.close()
        self.visit(program, "Bob")
        ada.expect("* Bob joined")

    @limits_only
    def test_out_of_file_descriptors_those_without_a_nickname_are_shown_out_all_the_same(self):
        program = self.start_with_few_files("import chat_server; chat_server.NICKNAME_TIMEOUT = 0.2")
        self.let_somebody_leave(program)
        crowd = [self.visit(program) for _ in range(30)]
        wait_until(lambda: "could not connect" in program.log)
        crowd[0].expect(PROMPT, "* No nickname came within 0.2 seconds.", END)

    @limits_only
    def test_out_of_file_descriptors_the_first_who_leaves_ends_nothing(self):
        program = self.start_with_few_files()    # Python 3.8 on Linux opens a library when its first thread ends
        ada, grace = self.fill_room(program, "Ada", "Grace")
        for _ in range(30):
            self.visit(program)
        wait_until(lambda: "could not connect" in program.log)
        grace.send("/quit")
        ada.expect("* Grace left")
        ada.send("/who")
        ada.expect("* Online (1): Ada")

    @proc_only
    def test_an_idle_visitor_takes_less_than_40_kib(self):
        program = self.start_program("--quiet", checks=False)
        self.fill_room(program, "Ada")
        before = memory(program.process.pid)
        visitors = [self.visit(program, f"Visitor {number}") for number in range(300)]
        visitors[-1].send("/who")
        visitors[-1].lines_until("* Online (301): Ada, " + ", ".join(f"Visitor {number}" for number in range(300)))
        self.assertLess((memory(program.process.pid) - before) / 300, 40)


################ The program: stopping
@posix_only
class StopTest(ChatTest):
    def test_everybody_hears_that_the_server_stops_and_the_port_is_free_at_once(self):
        program = self.start_program()
        visitors = [self.visit(program, f"Visitor {number}") for number in range(50)]
        self.assertLess(program.stop(), 2)
        for visitor in visitors:
            self.assertEqual([line for line in visitor.lines_until(STOPPED) if "joined" not in line], [STOPPED])
            visitor.expect(END)
        self.visit(self.start_program("--port", str(program.port)), "Ada")

    def test_neither_a_nameless_visitor_nor_a_flood_delays_the_end(self):
        program = self.start_program()
        nameless, flooder = self.visit(program), self.visit(program, "Flooder")
        nameless.expect(PROMPT)

        def flood():
            try:
                while True:
                    flooder.send_bytes(b"hello\n" * 1000)
            except OSError:
                pass    # the server has stopped
        thread = threading.Thread(target=flood)
        thread.start()
        self.addCleanup(thread.join)
        wait_until(lambda: program.log.count("Flooder: hello") > 30)
        self.assertLess(program.stop(), 2)
        nameless.expect(STOPPED, END)

    def test_nobody_has_to_be_there(self):
        self.assertLess(self.start_program().stop(), 2)


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
    def connect(self, server, nickname=""):
        """Return a client that is connected, and in the room if there is a nickname."""
        client = chat_client.ChatClient(server.host, server.port)
        self.addCleanup(lambda: client.socket and client.close())
        client.connect()
        if nickname:
            client.join(nickname)
        return client

    def hear(self, client):
        """Let the client receive, and return a function that waits for the next line."""
        lines = queue.Queue()
        client.start_receiving(lines.put)
        return functools.partial(lines.get, timeout=DEADLINE)

    def test_it_joins_sends_and_receives(self):
        server = self.start_server()
        grace = self.visit(server, "Grace")
        ada = self.connect(server, "Ada")
        grace.expect("* Ada joined")
        line = self.hear(ada)
        self.assertEqual([line(), line()], ["* Welcome, Ada!", "* Online (2): Grace, Ada"])
        ada.send_message("hello")
        grace.expect("Ada: hello")
        grace.send("good morning")
        self.assertEqual(line(), "Grace: good morning")

    def test_a_refused_nickname_carries_the_reason_and_another_can_be_tried(self):
        server = self.start_server()
        grace = self.visit(server, "Grace")
        client = self.connect(server)
        for nickname, reason in (("Grace", "Somebody here is called Grace already"), ("", "1 to 20 characters")):
            with self.assertRaises(chat_client.NicknameRefused) as caught:
                client.join(nickname)
            self.assertIn(reason, str(caught.exception))
            self.assertNotIn("NICK", str(caught.exception))
        client.join("Ada")
        grace.expect("* Ada joined")

    def test_white_space_in_a_nickname_is_one_line_all_the_same(self):
        server = self.start_server()
        line = self.hear(self.connect(server, " Ada\nLovelace "))
        self.assertEqual(line(), "* Welcome, Ada Lovelace!")

    def test_a_message_of_4096_bytes_is_sent_and_a_longer_one_is_not(self):
        server = self.start_server()
        grace = self.visit(server, "Grace")
        ada = self.connect(server, "Ada")
        with self.assertRaisesRegex(chat_client.ChatError, "4096.*4097"):
            ada.send_message("x" * 4097)
        with self.assertRaises(chat_client.ChatError):
            ada.send_message("🙂" * 1025)
        ada.send_message("🙂" * 1024)
        grace.expect("* Ada joined", "Ada: " + "🙂" * 1024)

    def test_a_broken_character_is_sent_as_a_question_mark(self):
        server = self.start_server()
        grace = self.visit(server, "Grace")
        self.connect(server, "Ada").send_message("caf\udce9")    # what Python makes of a byte that is no UTF-8
        grace.expect("* Ada joined", "Ada: caf?")

    def test_small_messages_do_not_wait(self):
        client = self.connect(self.start_server())
        self.assertTrue(client.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def test_a_server_that_vanished_is_noticed(self):
        client = self.connect(self.start_server())
        self.assertTrue(client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                self.assertEqual(client.socket.getsockopt(socket.IPPROTO_TCP, getattr(socket, option)), value, option)

    def test_one_who_is_silent_for_long_stays_connected(self):
        self.set(ANSWER_TIMEOUT=0.1)
        server = self.start_server()
        grace = self.visit(server, "Grace")
        line = self.hear(self.connect(server, "Ada"))
        self.assertEqual([line(), line()], ["* Welcome, Ada!", "* Online (2): Grace, Ada"])
        with self.assertRaises(queue.Empty):
            line(timeout=0.3)    # longer than ANSWER_TIMEOUT
        grace.send("hello")
        self.assertEqual(line(), "Grace: hello")

    def test_a_character_that_packets_cut_in_half_arrives_whole(self):
        pieces = [bytes([byte]) for byte in "* é漢🙂\n".encode()]
        line = self.hear(self.connect(self.start_raw_server(saying(b"* Hi\n", *pieces)), "Ada"))
        self.assertEqual([line(), line()], ["* Hi", "* é漢🙂"])

    def test_only_a_line_feed_ends_a_line_and_bytes_that_are_no_utf8_are_replaced(self):
        server = self.start_raw_server(saying("Hi\r\none\u2028\x0ctwo\rthree\ncaf".encode() + b"\xe9\n"))
        line = self.hear(self.connect(server, "Ada"))
        self.assertEqual([line(), line(), line()], ["Hi", "one\u2028\x0ctwo\rthree", "caf\ufffd"])

    def test_a_server_that_asks_for_no_nickname_lets_us_in_at_once(self):
        line = self.hear(self.connect(self.start_raw_server(saying(b"Welcome to Simple Chat!\n")), "Ada"))
        self.assertEqual(line(), "Welcome to Simple Chat!")

    def test_nobody_listening_is_said(self):
        port = self.free_port()
        with self.assertRaisesRegex(chat_client.ChatError, f"^Nobody answers at 127.0.0.1 port {port}"):
            chat_client.ChatClient(HOST, port).connect()

    def test_a_computer_that_does_not_exist_is_said(self):
        for host in ("no-such-computer.invalid", "a..b"):    # the second is not even asked for
            with self.assertRaisesRegex(chat_client.ChatError, f"^There is no computer called {host}"):
                chat_client.ChatClient(host, 7500).connect()

    def test_a_server_that_says_nothing_is_given_up(self):
        self.assertLessEqual(chat_client.ANSWER_TIMEOUT, 10)
        self.set(ANSWER_TIMEOUT=0.1)
        with self.assertRaisesRegex(chat_client.ChatError, "says nothing"):
            self.connect(self.start_raw_server(until_closed))

    def test_a_server_that_does_not_answer_to_a_nickname_is_given_up(self):
        self.set(ANSWER_TIMEOUT=0.1)
        with self.assertRaisesRegex(chat_client.ChatError, "says nothing"):
            self.connect(self.start_raw_server(saying(b"NICK Who?\n")), "Ada")

    def test_a_server_that_closes_at_once_is_said(self):
        with self.assertRaisesRegex(chat_client.ChatError, "closed"):
            self.connect(self.start_raw_server(lambda connection: None))

    def test_a_failed_attempt_leaves_no_connection_behind(self):
        server = self.start_server()
        self.visit(server, "Grace")
        try:
            chat_client.enter_room(server.host, server.port, "Grace")
        except chat_client.NicknameRefused as error:
            refusal = error    # keeps all that it came from, so that nothing is closed only because it is forgotten
        self.assertIn("called Grace already", str(refusal))
        wait_until(lambda: len(server.connected_clients) == 1)

    def test_the_end_of_the_connection_is_told_once(self):
        def talk(connection):
            connection.sendall(b"Hi\nlast words")
        line = self.hear(self.connect(self.start_raw_server(talk), "Ada"))
        self.assertEqual([line(), line(), line()], ["Hi", "last words", None])
        with self.assertRaises(queue.Empty):
            line(timeout=0.05)

    def test_an_endless_line_comes_in_pieces(self):
        size, heard = 4 * 1024 * 1024, 0
        line = self.hear(self.connect(self.start_raw_server(saying(b"x" * size)), "Ada"))
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
        client = self.connect(self.start_raw_server(talk), "Ada")
        self.hear(client)
        client.send_message("last words")
        client.close()
        self.assertEqual(heard, [b"last words\n", "closed"])

    def test_to_close_does_not_wait_for_ever(self):
        self.set(CLOSE_TIMEOUT=0.1)
        server = self.start_raw_server(lambda connection: (connection.sendall(b"Hi\n"), done.wait(DEADLINE)))
        done = threading.Event()
        client = self.connect(server, "Ada")
        self.hear(client)
        self.addCleanup(done.set)
        started = time.monotonic()
        client.close()
        self.assertLess(time.monotonic() - started, 1)

    def test_after_the_end_of_the_connection_sending_says_so(self):
        client = self.connect(self.start_raw_server(lambda connection: connection.sendall(b"Hi\n")), "Ada")
        line = self.hear(client)
        self.assertEqual([line(), line()], ["Hi", None])
        client.close()
        with self.assertRaisesRegex(chat_client.ChatError, "^Not sent: .*lost"):
            client.send_message("hello")


################ The client: the terminal
class ClientProcess:
    """chat_client.py as a program, through pipes. `setup` is Python code that runs first."""
    check = ChatTest()

    def __init__(self, *options, setup="", environment=None, folder=HERE):
        start = ["-c", f"import chat_client\n{setup}\nchat_client.main()"] if setup else ["chat_client.py"]
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", *start, *options], cwd=folder, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
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
        for _ in range(3):
            self.process.send_signal(signal.SIGINT)
            try:
                return self.process.wait(3)
            except subprocess.TimeoutExpired:
                pass

    def stop(self):
        self.watchdog.cancel()
        self.watchdog.join()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()
        try:
            self.process.stdin.close()
        except OSError:
            pass    # nobody reads it any more


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

    def test_a_refused_nickname_is_explained_and_asked_for_again(self):
        server = self.start_server()
        grace = self.visit(server, "Grace")
        for options, typed in (((), ["Grace", "Ada"]), (("--nickname", "Grace"), ["Ada"])):
            ada = self.start_terminal(server, *options)
            ada.type(*typed)
            ada.expect("Somebody here is called Grace already. Choose another.", "* Welcome, Ada!")
            grace.expect("* Ada joined")
            ada.type("/quit")
            grace.expect("* Ada left")

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
        grace, ada = self.chat(rate=100, setup="chat_client.CLOSE_TIMEOUT = 0.1")    # shorter than it takes
        for number in range(20):
            grace.send("hello")    # unread or not, it must not harm
        ada.type(*map(str, range(300)))
        ada.process.stdin.close()
        grace.expect(*[f"Ada: {number}" for number in range(300)], "* Ada left")

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
                                  setup="chat_client.ANSWER_TIMEOUT = 0.1")
        ada.expect_end(1, errors=".*says nothing")

    def test_a_server_that_closes_at_once_is_said_in_one_line(self):
        ada = self.start_terminal(self.start_raw_server(lambda connection: None), "--nickname", "Ada")
        ada.expect_end(1, errors="The server closed the connection")

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
        for port in ("0", "-1", "65536", "x"):
            done = self.run_program("--port", port, "--text")
            self.assertEqual((done.returncode, done.stdout), (2, ""))
            self.assertIn("error: ", done.stderr)
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
        try:
            import tkinter
            from tkinter import font, ttk
            tkinter.Tk().destroy()
        except ImportError:
            raise unittest.SkipTest("needs Tkinter, which this Python does not have")
        except tkinter.TclError as error:
            raise unittest.SkipTest(f"needs a screen: {error}")
        chat_client.tkinter, chat_client.font, chat_client.ttk = tkinter, font, ttk    # as open_window does
        cls.tkinter = tkinter

    def setUp(self):
        super().setUp()
        gc.disable()    # what belongs to Tk must not be collected by another thread: that ends the process
        self.addCleanup(gc.enable)
        errors = []     # an error in what a key or a timer calls fails the test
        patcher = mock.patch.object(self.tkinter.Tk, "report_callback_exception",
                                    lambda root, *error: errors.append("".join(traceback.format_exception(*error))))
        patcher.start()
        self.addCleanup(self.assertEqual, errors, [], "an error in the window")
        self.addCleanup(patcher.stop)

    def open(self, server, nickname="Ada"):
        """Open the window, which shows the dialog if there is no nickname."""
        self.window = chat_client.ChatWindow(server.host, server.port, nickname)
        self.addCleanup(self.close)
        self.root = self.window.root
        self.listbox, self.entry = self.window.message_listbox, self.window.entry_field
        self.button = self.window.send_button
        if nickname:    # with one it is in the room soon, or shows the dialog
            self.pump(lambda: not self.dialog() or self.dialog().state() == "normal")

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
        return next((child for child in self.root.winfo_children() if child.winfo_class() == "Toplevel"), None)

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
        self.assert_refused("", says="1 to 20 characters")
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
        for port in ("", "x", "0", "65536", "-1", "7500.0", "²", "٣"):
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
        self.set(ANSWER_TIMEOUT=0.1)
        self.open(self.start_raw_server(until_closed), "")
        self.assert_refused("Ada", says="says nothing")
        closing = self.start_raw_server(lambda connection: None)
        self.assert_refused("Ada", None, str(closing.port), says="closed")

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

    def test_reconnect_asks_again_and_goes_on_in_the_same_window(self):
        server = self.lose()
        self.button.invoke()
        self.assertEqual(self.typed(), ["Ada", HOST, str(server.port)])
        self.fill_in("Ada")
        self.assertRegex(self.status(), "^Nobody answers")
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
        self.button.invoke()
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
        self.root.after(100, self.soon)
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
        for number in range(50):
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
    """The walkthrough cannot go stale: its code, its session and its figures are those of the programs."""

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
        """The rows of the first table after a heading, as lists of cells without their backquotes."""
        table = re.search(r"\n(\|.*?)\n\n", self.readme.split(f"\n{heading}\n")[1], re.DOTALL)[1]
        return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[2:]]

    def test_every_piece_of_code_stands_in_one_of_the_scripts(self):
        pieces = [block for block in self.blocks if ">>>" not in block]
        self.assertGreater(len(pieces), 40)
        for piece in pieces:
            self.assertTrue(piece in self.server_code or piece in self.client_code, f"not in the scripts:\n{piece}")

    def test_every_class_and_function_is_spoken_of(self):
        for script in (self.server_code, self.client_code):
            for node in ast.walk(ast.parse(script)):
                if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                    self.assertRegex(self.readme, rf"\b{node.name}\b")

    def test_the_session_in_the_prompt_runs_as_it_is_printed(self):
        server = self.start_server()
        session = "".join(block for block in self.blocks if ">>>" in block).replace("7500", str(server.port))
        test = doctest.DocTestParser().get_doctest(session, {}, "README.md", "README.md", 0)
        said = []
        result = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
        self.assertEqual(result.failed, 0, "".join(said))
        self.assertGreater(result.attempted, 20)

    def test_the_options_and_their_defaults_are_those_of_the_programs(self):
        for script, heading in (("chat_server.py", "### Options of the server"),
                                ("chat_client.py", "### Options of the client")):
            said = subprocess.run([sys.executable, script, "--help"], cwd=HERE,
                                  stdout=subprocess.PIPE, universal_newlines=True, timeout=DEADLINE).stdout
            said = " ".join(said.split())
            rows = self.rows(heading)
            self.assertEqual([row[0].strip("`") for row in rows], re.findall(r"(--(?!help)[a-z]+)(?: [A-Z]+)? [a-z]", said))
            for option, default, _ in rows:
                if default.startswith("`"):
                    self.assertRegex(said, rf"{option.strip('`')} [^-]*\(default: {re.escape(default.strip('`'))}\)")

    def test_the_limits_are_those_of_the_programs(self):
        stated = {re.findall(r"`(\w+)`", row[2])[0]: [int(figure) for figure in re.findall(r"\d+", row[1].replace(",", ""))]
                  for row in self.rows("### Limits")}
        keepalive = chat_server.KEEPALIVE
        self.assertEqual(stated, {
            "MAX_LINE": [chat_server.MAX_LINE, chat_server.MAX_LINE // 4],
            "MAX_NICKNAME": [chat_server.MAX_NICKNAME],
            "NICKNAME_TIMEOUT": [chat_server.NICKNAME_TIMEOUT],
            "RATE": [chat_server.RATE, chat_server.BURST],
            "SEND_BUFFER": [chat_server.SEND_BUFFER // 1024],
            "KEEPALIVE": [keepalive["TCP_KEEPIDLE"] + keepalive["TCP_KEEPINTVL"] * keepalive["TCP_KEEPCNT"]],
            "MAX_MESSAGES": [chat_client.MAX_MESSAGES]})
        self.assertEqual(chat_client.MAX_LINE, chat_server.MAX_LINE)

    def test_the_tests_that_it_names_exist(self):
        named = [row[3].strip("`") for row in self.rows("## 7. Break it")]
        self.assertGreaterEqual(len(named), 10)
        for name in named:
            self.assertIn(f"def {name}(", self.test_code)


if __name__ == "__main__":
    unittest.main()
