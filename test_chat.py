"""What the chat does, as tests: they read like a specification, and use real sockets and real processes.

Run them:   python -m unittest                  (all of them, in this folder)
            python -m unittest -k nickname      (those whose name holds a word)

Nothing is waited for with a bare sleep: whatever is expected has DEADLINE seconds to come. To know
that something does not come, a later line is sent as a marker, and all that is heard until then is compared.
"""
import faulthandler
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import unittest
from unittest import mock

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
    def __init__(self, *options, setup="", paused=False, checks=True):
        python = [sys.executable, "-X", "dev", "-W", "error"] if checks else [sys.executable]
        start = ["-c", f"{setup}\nimport chat_server\nchat_server.main()"] if setup else ["chat_server.py"]
        self.process = subprocess.Popen(
            [*python, *start, "--port", "0", *options], cwd=HERE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", errors="replace")
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
            self.process.kill()
            self.process.wait()
            self.log_thread.join()
            self.watchdog.cancel()
            self.watchdog.join()
            self.process.stdout.close()
            self.process.stderr.close()
        if (os.name == "posix" and self.process.returncode != 0) or "Traceback" in self.log or "Warning" in self.log:
            raise AssertionError(f"The server ended with status {self.process.returncode}: {self.log}")
        return seconds


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
        self.assert_refused("*", "* Ada", "*Ada", "/Ada", "/who", "\uff0aAda", "\uff0fAda")
        self.assert_accepted("Ada*/", "Ada*/")

    def test_nobody_is_called_you(self):
        self.assert_refused("you", "You", "YOU", "\uff39\uff4f\uff55", "Y\u200bou")
        self.assert_accepted("Young", "Young")

    def test_an_invisible_nickname_is_refused(self):
        self.assert_refused("\u200b", "\u200d\ufe0f", "\u2060")

    def test_a_taken_nickname_is_refused_however_it_is_written(self):
        self.fill_room(self.server, "Ada", "Straße", "Ade\u0301")
        self.assert_refused("Ada", "ada", "ADA", "\uff21\uff44\uff41", "A\u200bda", "Ada\ufe0f", "\u200dAda",
                            "STRASSE", "Ad\u00e9", "  Ada  ", "A\x07da")

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


if __name__ == "__main__":
    unittest.main()
