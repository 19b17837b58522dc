"""Tests of the chat, with real sockets, real processes and a real window.

Run them:   python -m unittest                (all tests, in this folder)
            python -m unittest -k nickname    (only those with this word)

A test waits at most DEADLINE seconds for whatever it expects. To find out
that something is not received, it sends a marker, and then compares all
lines that arrived before the marker. Tests of the window are skipped
without Tkinter or a display (Linux: xvfb-run python -m unittest).
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
from random import Random
from unittest import mock

import chat_client
import chat_server

try:
    import resource  # not on Windows
except ImportError:
    resource = None

HERE = os.path.dirname(os.path.abspath(__file__))
HOST = "127.0.0.1"
OTHER_COMPUTER = "127.0.0.2"  # for the server, on Linux
DEADLINE = 10  # seconds
END = ""  # the connection is closed, or the process has ended
PROMPT = "NICK Choose a nickname."
ONLINE = "* Online (2): Ada, Grace"
TOO_LONG = "* Not sent: a message can have at most 4096 bytes."
TOO_MANY = "* This computer has too many connections."
TIMED_OUT = "* No nickname was accepted in time."
STOPPED = "* The server has stopped."
# For run_dialogue: only Ada is in the room.
ONLY_ADA = "Ada > /who\nAda < * Online (1): Ada"
LINUX = sys.platform == "linux"
POSIX = os.name == "posix"
posix_only = unittest.skipUnless(
    POSIX, "Windows ends a process without sending it a signal")
linux_only = unittest.skipUnless(
    LINUX, "only Linux has /proc and can use each address in 127.0.0.0/8")


def setUpModule():
    # A script that runs in the background ignores Ctrl+C, and so would the
    # processes that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # macOS allows 256 open files, which is not enough for 100 connections.
    if resource:
        hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with contextlib.suppress(ValueError):  # not allowed
            resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard_limit))


# --- Helpers ---

def wait_until(condition, problem=lambda: "The event did not happen."):
    """Wait until condition() is true. Otherwise fail and show problem()."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(problem())
        time.sleep(0.001)


def check_received(received, expected, note=""):
    """Assert that both are equal. Otherwise show both."""
    unittest.TestCase().assertEqual(
        received, expected,
        f"\nReceived: {received!s:.900}\nExpected: {expected!s:.900}\n{note}")


def process_status(pid, name):
    """Return Threads or VmHWM (peak memory, KiB) of a process on Linux."""
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(rf"{name}:\s+(\d+)", status.read()).group(1))


class RawClient:
    """A connection to a server, through which a test sends any bytes.

    computer: the IP address to connect from.
    """

    def __init__(self, port, host=HOST, computer=None):
        self.socket = socket.create_connection(
            (host, port), DEADLINE, computer and (computer, 0))
        # Otherwise, the second of two chunks can be delayed by 0.04 seconds.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = self.socket.makefile("rb")
        self.latest_lines = collections.deque(maxlen=5)

    def send(self, *lines):
        """Send lines. "\\udcff" is the byte 0xff, which is not UTF-8."""
        self.send_bytes("".join(line + "\n" for line in lines).encode(
            errors="surrogateescape"))

    def send_bytes(self, data):
        self.socket.sendall(data)

    def line(self, expected="another line"):
        """Return the next line without its line ending, or END."""
        try:
            line = self.reader.readline().decode()
        except ConnectionError:
            return END
        # After a timeout, Python cannot read from this socket any more.
        except OSError:
            raise AssertionError(
                f"Not received within {DEADLINE} seconds: {expected:.60}. "
                f"Received before: {list(self.latest_lines)}") from None
        if line and not line.endswith("\n"):
            raise AssertionError(f"Received without a line ending: {line}")
        line = line[:-1]
        self.latest_lines.append(line[:60])
        return line

    def lines_until(self, last):
        """Return all lines up to this one (included)."""
        lines = []
        while lines[-1:] != [last]:
            if lines[-1:] == [END]:
                raise AssertionError(
                    f"Not received before the connection was closed: {last}. "
                    f"Received before: {list(self.latest_lines)}")
            lines.append(self.line(last))
        return lines

    def expect(self, *lines):
        """Assert that exactly these lines are received next."""
        check_received([self.line(line) for line in lines], list(lines))

    def join(self, nickname):
        """Join the room with this nickname."""
        self.expect(PROMPT)
        self.send(nickname)
        self.expect(f"* Welcome, {nickname}!")
        unittest.TestCase().assertRegex(
            self.line(), rf"^\* Online .*[ :]{re.escape(nickname)}$")

    def shutdown_write(self):
        """Send no more, but still receive."""
        self.socket.shutdown(socket.SHUT_WR)

    def close(self):
        self.reader.close()
        self.socket.close()

    def reset(self):
        """Close the connection with a reset: SO_LINGER with 0 seconds."""
        linger = struct.pack("ii" if POSIX else "hh", 1, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close()


class ManagedProcess:
    """A Python process. It is killed if it makes a test wait too long.

    Two threads read all that it prints: output is what it has written to
    stdout until now, and log what it has written to stderr.
    checks: enable Python's own checks, which use some memory.
    paused: stop reading stdout after three lines, until wait is called.
    """

    def __init__(self, *command, checks=True, paused=False, folder=HERE,
                 stdin=subprocess.PIPE):
        options = ["-X", "dev", "-W", "error"] * checks
        # With an empty PYTHONUNBUFFERED, a missing flush is noticed.
        self.process = subprocess.Popen(
            [sys.executable, *options, *command], cwd=folder, stdin=stdin,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
            errors="replace", env={**os.environ, "PYTHONUNBUFFERED": "",
                                   "PYTHONIOENCODING": "utf-8"})
        self.printed = []  # lines of stdout
        self.log = ""
        self.lines = queue.Queue()  # of stdout; the last one is END
        self.resumed = threading.Event()
        if not paused:
            self.resumed.set()
        self.threads = []
        for target in (self.read_output, self.read_log):
            self.threads.append(threading.Thread(target=target))
            self.threads[-1].start()

    @property
    def output(self):
        return "".join(self.printed)

    def read_output(self):
        with contextlib.suppress(ValueError):  # the test has closed it
            for number, line in enumerate(self.process.stdout, 1):
                self.printed.append(line)
                self.lines.put(line)
                if number == 3:
                    self.resumed.wait()
        self.lines.put(END)

    def read_log(self):
        for line in self.process.stderr:
            self.log += line

    def wait_for_log(self, text):
        """Wait until this text is in the output or in the log."""
        wait_until(
            lambda: text in self.output + self.log, lambda:
            f"Expected: {text}\nPrinted: {self.output}\nErrors: {self.log}")

    def line(self):
        """Return the next line of stdout without its line ending, or END."""
        try:
            line = self.lines.get(timeout=DEADLINE)
        except queue.Empty:
            self.kill()
            raise AssertionError(
                f"Nothing was printed within {DEADLINE} seconds. Printed "
                f"before: {self.output}Errors: {self.log}") from None
        if line == END:
            self.lines.put(END)  # for the next call
        return line.rstrip("\n")

    def expect(self, *lines):
        """Assert that exactly these lines are printed next."""
        printed = [self.line() for _ in lines]
        if printed != list(lines):
            self.kill()  # completes the log
        check_received(printed, list(lines), f"Errors: {self.log}")

    def wait(self):
        """Wait until the process ends. Return its exit status."""
        self.resumed.set()
        try:
            status = self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            status = f"killed after {DEADLINE} seconds"
        for thread in self.threads:
            thread.join()
        for pipe in (self.process.stdin, self.process.stdout,
                     self.process.stderr):
            # A broken pipe, or (AttributeError) the caller's own file.
            with contextlib.suppress(OSError, AttributeError):
                pipe.close()
        return status

    def kill(self):
        """Kill the process. Afterwards, output and log are complete."""
        self.process.kill()
        self.wait()


def script(name, setup=""):
    """Return the arguments for Python to run a script, after this code."""
    if setup:
        return ["-c", f"import os, sys, {name}\n{setup}\n{name}.main()"]
    return [f"{name}.py"]


class ServerProcess(ManagedProcess):
    """chat_server.py on a free port. setup: Python code to run first."""

    def __init__(self, *options, setup="", **arguments):
        super().__init__(*script("chat_server", setup), "--port", "0",
                         *options, **arguments)
        self.start_lines = [self.line(), self.line()]
        match = re.search(r"listening on (\S+) port (\d+)\.$",
                          self.start_lines[0])
        if not match:
            self.kill()
            raise AssertionError(
                f"It did not start. Printed: {self.output}Errors: {self.log}")
        self.host = match.group(1)
        self.port = int(match.group(2))

    def stop(self, number=signal.SIGINT):
        """Stop the server as Ctrl+C does. Return how long that took."""
        started = time.monotonic()
        # Windows has only SIGTERM, which ends a process immediately.
        self.process.send_signal(number if POSIX else signal.SIGTERM)
        # A connection ends the wait in accept, unless it has already ended.
        with contextlib.suppress(OSError), socket.create_connection(
                (self.host, self.port), DEADLINE):
            self.wait()
        status = self.wait()
        if self.log or POSIX and status:
            raise AssertionError(
                f"Status: {status}. Expected: 0. Errors: {self.log}")
        return time.monotonic() - started


class ChatTest(unittest.TestCase):
    """Starts servers and clients, and cleans up after each test."""

    maxDiff = None

    def setUp(self):
        # If a test hangs, this shows where.
        faulthandler.dump_traceback_later(60, exit=True, file=sys.__stderr__)
        self.addCleanup(faulthandler.cancel_dump_traceback_later)
        # An exception that ends a thread of the server fails its test.
        errors = set()
        self.addCleanup(self.assertEqual, errors, set(), "A thread crashed.")
        self.patch(threading, "excepthook",
                   lambda args: errors.add(repr(args.exc_value)))

    def patch(self, target, name, value):
        """Set an attribute for the duration of this test."""
        patcher = mock.patch.object(target, name, value)
        patcher.start()
        self.addCleanup(patcher.stop)

    def start_server(self, rate=0):
        """Start a server in this process. Without a rate it has no limits."""
        server = chat_server.ChatServer(HOST, 0, rate)
        server.start()
        server.accept_thread = threading.Thread(
            target=server.accept_connections)
        server.accept_thread.start()
        self.addCleanup(self.stop_server, server)
        return server

    def stop_server(self, server):
        if server.accepting:
            server.accepting = False
            # A connection ends the wait in accept.
            with socket.create_connection((HOST, server.port), DEADLINE):
                server.accept_thread.join()
                server.stop()

    def start_server_process(self, *options, **arguments):
        """Start a server in a process of its own."""
        program = ServerProcess(*options, **arguments)
        self.addCleanup(program.stop)
        return program

    def connect_to(self, server, nickname="", **arguments):
        """Return a new client, which joins the room if it has a nickname."""
        client = RawClient(server.port, server.host, **arguments)
        self.addCleanup(client.close)
        if nickname:
            client.join(nickname)
        return client

    def join_clients(self, server, *nicknames):
        """Return new clients that have received each other's joins."""
        clients = []
        for nickname in nicknames:
            new_client = self.connect_to(server, nickname)
            for client in clients:
                client.expect(f"* {nickname} joined")
            clients.append(new_client)
        self.clients_by_name = dict(zip(nicknames, clients))
        return clients

    def start_room(self, *nicknames, rate=0):
        """Start a server in this process. Return the clients in its room."""
        self.server = self.start_server(rate)
        return self.join_clients(self.server, *nicknames)

    def connect_client(self, nickname=""):
        """Return one more client, which joins if it has a nickname."""
        client = self.connect_to(self.server, nickname)
        self.clients_by_name[nickname] = client
        if not nickname:
            client.expect(PROMPT)
        return client

    def run_dialogue(self, dialogue):
        """Let clients send and receive lines.

        `Ada > one|two` sends two lines in one chunk, `Ada < one|two`
        asserts that Ada receives exactly these next, and `Ada <` that the
        server has closed her connection.
        """
        for step in dialogue.strip().splitlines():
            name, sign, text = re.match(r" *(\w+) ([<>]) ?(.*)", step).groups()
            client = self.clients_by_name[name]
            if sign == ">":
                client.send(*text.split("|"))
            else:
                client.expect(*text.split("|"))

    def connection_of(self, nickname):
        """Return the server's ClientConnection of a client."""
        # The thread of a client can be faster than its entry.
        with self.server.lock:
            return next(client for client in self.server.connected_clients
                        if client.nickname == nickname
                        and not client.disconnected.is_set())

    def keep_sending(self, client, data):
        """Send bytes repeatedly in a thread until the connection ends."""
        def send():
            with contextlib.suppress(OSError):
                while True:
                    client.send_bytes(data)

        def end():
            with contextlib.suppress(OSError):  # already closed
                client.socket.shutdown(socket.SHUT_RDWR)
        thread = threading.Thread(target=send)
        thread.start()
        self.addCleanup(thread.join)
        self.addCleanup(end)

    def assert_options(self, connection):
        """Assert that dead connections are noticed."""
        for name, value in (
                ("TCP_KEEPIDLE", 20), ("TCP_KEEPALIVE", 20),
                ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4),
                ("TCP_USER_TIMEOUT", 60_000)):
            if hasattr(socket, name):
                option = connection.getsockopt(socket.IPPROTO_TCP,
                                               getattr(socket, name))
                self.assertEqual(option, value, name)
        self.assertTrue(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def call_in_thread(self, function, *arguments):
        """Call it in a thread, in the middle of something.

        If a lock makes it wait, it ends after this has returned.
        """
        thread = threading.Thread(target=function, args=arguments)
        thread.start()
        thread.join(0.05)


# --- The protocol: lines ---

class LinesTest(ChatTest):
    def setUp(self):
        super().setUp()
        self.ada, self.grace = self.start_room("Ada", "Grace")

    def assert_messages(self, sent, *texts):
        """Assert that Grace receives these texts when Ada sends bytes."""
        self.ada.send_bytes(sent + b"marker\n")
        check_received(self.grace.lines_until("Ada: marker")[:-1],
                       [f"Ada: {text}" for text in texts])

    def send_chunks(self, *chunks):
        """Let Ada send chunks (bytes), none of which completes a line."""
        for chunk in chunks:
            self.ada.send_bytes(chunk)
            # Gives the server time to read the chunk.
            self.run_dialogue(f"Grace > /who\nGrace < {ONLINE}")

    def test_message_is_sent_to_everybody_but_its_sender(self):
        self.run_dialogue("""
            Ada > hello
            Grace < Ada: hello
            Grace > good morning
            Ada < Grace: good morning""")

    def test_chunk_with_three_lines_is_three_messages(self):
        self.assert_messages(b"one\ntwo\r\nthree\n", "one", "two", "three")

    def test_line_in_several_chunks_is_one_message(self):
        for line in ("hello", "é漢🙂"):
            self.send_chunks(*[bytes([byte]) for byte in line.encode()])
            self.assert_messages(b"\n", line)
        self.ada.send_bytes(b"one\ntw")
        self.grace.expect("Ada: one")
        self.assert_messages(b"o\n", "two")
        self.send_chunks(b"x" * 4096 + b"\r")
        self.assert_messages(b"\n", "x" * 4096)

    def test_last_line_without_line_ending_is_processed(self):
        self.ada.send_bytes(b"x" * 5000 + b"\none\nlast words")
        self.ada.shutdown_write()
        self.run_dialogue(f"""
            Grace < Ada: one|Ada: last words|* Ada left
            Ada < {TOO_LONG}|""")

    def test_blank_and_invisible_messages_are_ignored(self):
        self.assert_messages(b"\n\r\n \n\t \n\x07\n\xe3\x80\x80\n" +
                             "\u200b\n\u2800\n\u3164 \n\u00ad\n".encode())

    def test_message_can_have_4096_bytes(self):
        longest = "x" * 4096
        emoji = "🙂" * 1024
        self.assert_messages(f"{longest}\n{longest}\r\n{emoji}\n".encode(),
                             longest, longest, emoji)
        # As it arrives and as it is sent: an invalid byte becomes three.
        self.assert_messages(b"\xff" * 1365 + b"x\n", "\ufffd" * 1365 + "x")
        for line in (b"x" * 4097, b"x" * 4097 + b"\r", b"x" * 4096 + b"\ry",
                     b"x" * 300_000, b"\xff" * 1366, b"\x07x" * 2049):
            # The server keeps only a part of a line until its end arrives.
            self.send_chunks(line)
            self.assert_messages(b"\n")
            self.ada.expect(TOO_LONG)

    def test_invalid_utf8_is_replaced(self):
        self.assert_messages(b"caf\xe9 \xff\xc3\n", "caf\ufffd \ufffd\ufffd")

    def test_control_characters_are_removed(self):
        for code in (*range(0x09), *range(0x0b, 0x20), *range(0x7f, 0xa0),
                     *range(0x2028, 0x202f), *range(0x2066, 0x206a)):
            self.assert_messages(f"a{chr(code)}b\n".encode(), "ab")

    def test_other_characters_are_kept(self):
        texts = ("  if x:    y ", "GET / HTTP/1.1", "and/or", " /quit",
                 "👩\u200d💻", "❤\ufe0f", "کتاب\u200cها",
                 # Not commands: these have only one slash.
                 "/home/ada/notes.txt is where I keep it", "/who/", "// no")
        self.assert_messages("\n".join([*texts, "a\tb\n"]).encode(),
                             *texts, "a b")

    def test_client_cannot_impersonate_another(self):
        self.assert_messages(
            "Grace: I am Grace\n* Grace left\nhi\rGrace: hi\n"
            "hi\u2028Grace: hi\u0085\n".encode(),
            "Grace: I am Grace", "* Grace left", "hiGrace: hi", "hiGrace: hi")

    def test_random_lines_arrive_whole_in_order_and_once(self):
        bob = self.connect_client("Bob")
        self.run_dialogue("Ada < * Bob joined\nGrace < * Bob joined")
        random = Random(22)
        stream = b""
        for number in range(500):
            size = random.choice((1, 1360, 2040, 4085)) + random.randrange(9)
            body = random.choice((
                b"x" * size, b"\xff" * size, b"\x07x" * (size // 2),
                random.getrandbits(8 * size).to_bytes(size, "big")))
            stream += b"%d %b\r\n" % (number, body.translate(None, b"\t\n"))
        sent = processed = 0
        for line in stream.split(b"\r\n")[:-1]:
            processed += len(line) + 2
            while sent < processed:
                size = random.randrange(1, 9000)
                self.ada.send_bytes(stream[sent:sent + size])
                sent += size
            text = "".join(
                letter for letter in line.decode(errors="replace")
                if unicodedata.category(letter) != "Cc")
            if max(len(line), len(text.encode())) > 4096:
                self.ada.expect(TOO_LONG)
            else:
                for client in (self.grace, bob):
                    client.expect(f"Ada: {text}")
        self.run_dialogue("""
            Ada > /who
            Ada < * Online (3): Ada, Grace, Bob
            Grace > marker
            Bob < Grace: marker
            Bob > marker
            Grace < Bob: marker""")

    @linux_only
    def test_endless_line_uses_little_memory(self):
        program = self.start_server_process("--rate", "0")
        ada, _ = self.join_clients(program, "Ada", "Grace")
        before = process_status(program.process.pid, "VmHWM")
        ada.send_bytes(b"x" * 2 * 1024 * 1024)
        self.run_dialogue(f"Ada > |still here\nAda < {TOO_LONG}\n"
                          "Grace < Ada: still here")
        self.assertLess(process_status(program.process.pid, "VmHWM") - before,
                        2048, "KiB more than before")


# --- The protocol: nicknames ---

# The first and last character of each range of invisible characters.
INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b\u180f\u200b\u200f\u2060"
    "\u206f\u2800\u3164\ufe00\ufe0f\ufeff\uffa0\ufff0\ufff8\U0001bca0"
    "\U0001bca3\U0001d173\U0001d17a\U000e0000\U000e0fff")


class NicknameTest(ChatTest):
    def request(self, nickname):
        """Let a new client send a nickname. Return it and the answer."""
        client = self.connect_client()
        client.send(nickname)
        return client, client.line()

    def test_valid_nickname_is_accepted(self):
        self.start_room()
        names = "x" * 20, "漢" * 20, "y", "Ada*/", "Young", "👩\u200d💻"
        for sent, nickname in (
                *zip(names, names),
                ("\x07" * 30 + "Ada" + "\u202e" * 30, "Ada"),
                (" \t Ada  \t \u3000 Lovelace ", "Ada Lovelace")):
            check_received(self.request(sent)[1], f"* Welcome, {nickname}!")

    def test_invalid_nickname_is_rejected_with_reason(self):
        self.start_room("Ada", "Straße", "Ade\u0301")
        for reason, nicknames in (
                ("at most 20 characters", "z" * 21 + "|" + "z" * 5000),
                ("1 visible character",
                 ("| |\x07|\u202e\x1b|\u200b|\u200d\ufe0f|\u2060|\u2800|\u3164"
                  "|\U0001d173")),
                ("colon or a comma", "Ada:|:|a:b|a\uff1ab|Ada, Ben|a\uff0cb"),
                (r"not start with \* or /",
                 ("*|* Ada|*Ada|/Ada|/who|\uff0aAda|\uff0fAda|\u200b * Ada"
                  "|\u200b /Ada")),
                # PuTTY can send telnet options before the nickname.
                ("text in UTF-8", "Zo\udce9|\udcff\udcfb\x1f\udcff\udcfbZoé"),
                ('"you" is reserved',
                 ("you|You|YOU|\uff39\uff4f\uff55|Y\u200bou|\u200b you"
                  "|Yo\U0001bca0u")),
                ("A.da is already in use",
                 "|".join(f"A{character}da" for character in INVISIBLE)),
                ("is already in use",
                 ("Ada|ada|ADA|\uff21\uff44\uff41|\u200dAda|  Ada  |A\x07da"
                  "|\u200b Ada|Ada \u200b|Ada\U0001d173|\ufff0Ada|STRASSE"
                  "|Ad\u00e9"))):
            for nickname in nicknames.split("|"):
                client, answer = self.request(nickname)
                self.assertRegex(
                    answer, f"^NICK .*{reason}.* Choose another nickname")
        client.send("Alan")
        client.expect("* Welcome, Alan!")

    def test_unnamed_client_receives_no_messages_and_is_not_listed(self):
        self.start_room("Ada", "Grace")
        self.clients_by_name["Bob"], _ = self.request("ada")
        self.run_dialogue(f"""
            Ada > hello
            Grace < Ada: hello
            Ada > /who
            Ada < {ONLINE}
            Bob > Bob
            Bob < * Welcome, Bob!|* Online (3): Ada, Grace, Bob
            Ada > hello Bob
            Bob < Ada: hello Bob""")

    def test_nickname_goes_to_one_client_when_fifty_request_it(self):
        self.start_room()
        clients = [self.connect_client() for _ in range(50)]
        # With this lock, all requests are sent before one is accepted.
        with self.server.lock:
            for client in clients:
                client.send("Ada")
        check_received([client.line()[:5] for client in clients].count(
            "* Wel"), 1, "clients called Ada")

    def test_nicknames_slow_to_normalize_do_not_delay_others(self):
        self.start_room("Ada", "Grace")
        for _ in range(5):
            self.keep_sending(self.connect_client(),
                              ("\u0301\u0316" * 9200 + "\n").encode())
        seconds = []
        for _ in range(9):
            started = time.monotonic()
            self.run_dialogue("Ada > hello\nGrace < Ada: hello")
            seconds.append(time.monotonic() - started)
        self.assertLess(sorted(seconds)[4], 0.05, "seconds (median)")

    def test_nickname_timeout_is_not_extended_by_bytes_or_connections(self):
        self.start_room("Ada")
        # The server looks at the deadlines at least this often.
        self.server.server_socket.settimeout(0.01)
        idle = self.connect_client()
        self.connection_of("").nickname_deadline = 0
        idle.expect(TIMED_OUT, END)
        slow = self.connect_client()
        self.connection_of("").nickname_deadline = time.monotonic() + 0.1
        with contextlib.suppress(OSError):  # closed
            for _ in range(1000):
                self.connect_client().close()
                slow.send_bytes(b"x")
        slow.expect(TIMED_OUT, END)
        # Nothing about unnamed clients is announced.
        self.run_dialogue(ONLY_ADA)

    def test_requests_of_other_protocols_are_not_broadcast(self):
        self.start_room("Ada")
        for request in (
                b"GET / HTTP/1.1\r\nCookie: secret\r\n\r\n",
                b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nattack\r\n",
                b"GET " + b"x" * 5000 + b" HTTP/1.1\r\nHost: a\r\nCookie: b\n",
                b"OPTIONS / RTSP/1.0\r\nCSeq: 1\r\n",
                b"OPTIONS sip:nm SIP/2.0\r\nMax-Forwards: 70\r\n",
                b"CAP LS 302\r\nNICK bob\r\nUSER bob 0 * :Bob\r\n",
                b"CLIENT libcurl 7.88.1\r\nDEFINE ! hello\r\nQUIT\r\n",
                b"*1\r\n$4\r\nPING\r\n", b"HELP\r\n", b"\x01default\nsecret\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\nsecret\n",
                # The rest of a connection is no nickname.
                b"Bob"):
            client = self.connect_client()
            for part in request.partition(b"\r"):
                client.send_bytes(part)
                # Gives the server time to read the part.
                self.run_dialogue(ONLY_ADA)
            if request == b"Bob":
                client.shutdown_write()
            self.assertRegex("|".join(client.lines_until(END)),
                             r"^(NICK [^|]*\|)*$")
            self.run_dialogue(ONLY_ADA)


# --- The protocol: the room ---

class RoomTest(ChatTest):
    def test_welcome_is_received_before_any_message(self):
        ada, = self.start_room("Ada")
        self.keep_sending(ada, b"hello\n" * 20)
        for number in range(12):
            # This asserts that the next lines are the welcome and the list.
            client = self.connect_client(f"Client {number}")
            client.lines_until("Ada: hello")
            client.close()

    def test_joining_and_leaving_are_announced_once(self):
        self.start_room("Ada", "Bob")
        for leave in (RawClient.close, RawClient.reset,
                      RawClient.shutdown_write,
                      lambda client: client.send("/quit")):
            # An unnamed client leaves unannounced.
            leave(self.connect_client())
            leave(self.connect_client("Grace"))
            self.run_dialogue("""
                Ada < * Grace joined|* Grace left
                Bob > marker
                Ada < Bob: marker""")

    def test_message_arrives_when_its_sender_closes_immediately(self):
        self.start_room("Ada")
        for _ in range(100):
            grace = self.connect_client("Grace")
            grace.send("last words")
            grace.close()
            self.run_dialogue(
                "Ada < * Grace joined|Grace: last words|* Grace left")

    def test_reply_arrives_when_client_sends_no_more(self):
        self.start_room()
        for _ in range(20):
            ada = self.connect_client("Ada")
            ada.send("/who")
            ada.shutdown_write()
            ada.expect("* Online (1): Ada", END)

    def test_user_list_includes_nobody_who_has_left(self):
        self.start_room("Ada", "Grace")
        reply = self.server.reply
        grace = self.connection_of("Grace")

        def reply_while_grace_leaves(client, line):
            self.call_in_thread(self.server.disconnect_client, grace)
            reply(client, line)
        self.patch(self.server, "reply", reply_while_grace_leaves)
        self.run_dialogue(f"Ada > /who\nAda < {ONLINE}|* Grace left")

    def test_nobody_leaves_while_message_is_queued(self):
        self.start_room("Ada", "Grace", "Bob")
        members = self.server.members

        def values_while_bob_leaves():
            self.server.members = members
            self.call_in_thread(self.server.disconnect_client,
                                self.connection_of("Bob"))
            return list(members.values())
        self.server.members = mock.MagicMock(values=values_while_bob_leaves)
        self.run_dialogue("Ada > hello\nGrace < Ada: hello|* Bob left")

    def test_client_cannot_join_while_timeout_disconnects_it(self):
        self.start_room("Ada")
        unnamed = self.connect_client()
        client = self.connection_of("")
        disconnect_client = self.server.disconnect_client

        def disconnect_while_it_joins(client):
            self.call_in_thread(self.server.join_room, client, "Bob")
            disconnect_client(client)
        self.patch(self.server, "disconnect_client",
                   disconnect_while_it_joins)
        client.nickname_deadline = 0
        # Before and after each accept, the server looks at the deadlines.
        self.connect_client("Grace")
        unnamed.expect(TIMED_OUT, END)
        client.thread.join()
        self.run_dialogue(f"Ada < * Grace joined\nAda > /who\nAda < {ONLINE}")

    def test_lines_before_quit_are_processed_and_lines_after_it_are_not(self):
        self.start_room("Ada", "Grace", "Bob")
        self.run_dialogue("""
            Ada > one|two|/quit|three
            Grace < Ada: one|Ada: two|* Ada left
            Ada <
            Bob > marker
            Grace < Bob: marker""")

    def test_user_list_has_several_lines_when_nicknames_are_long(self):
        self.start_room()
        names = [chr(0x20000 + number) * 20 for number in range(141)]
        for name in names:
            client = self.connect_client()
            client.send(name)
            client.expect(f"* Welcome, {name}!")
        client.send("/quit")
        listed = []
        for line in client.lines_until(END)[:-1]:
            self.assertLess(len(line.encode()), 4096)
            listed += line.replace("* Online (141): ", "").split(", ")
        check_received(listed, names)

    def test_unknown_command_is_reported_to_its_sender_only(self):
        ada, _ = self.start_room("Ada", "Grace")
        for command in ("/dance", "/WHO", "/"):
            ada.send(f"{command} with me")
            ada.expect(f"* Unknown command: {command}. "
                       "Available commands: /who, /quit")
        self.run_dialogue("Ada > marker\nGrace < Ada: marker")

    def test_disconnected_client_cannot_send(self):
        self.start_room("Ada", "Grace")
        client = self.connection_of("Grace")
        self.server.disconnect_client(client)
        # True ends its thread.
        self.assertTrue(self.server.process_lines(client, [b"hello"]))
        self.connect_client("Alan")
        self.run_dialogue("Ada < * Grace left|* Alan joined")


# --- The server: slow clients ---

class SlowClientTest(ChatTest):
    def test_slow_client_is_disconnected_without_blocking_others(self):
        # Slow does not read any more.
        ada, grace, _ = self.start_room("Ada", "Grace", "Slow")
        notice = "* Slow left (connection too slow)"
        longest_wait = 0
        lines = []
        # The system's buffers for one connection hold far less.
        for number in range(4000):
            started = time.monotonic()
            text = f"{number} ".ljust(4090, "x")
            ada.send(text)
            lines += grace.lines_until(f"Ada: {text}")
            longest_wait = max(longest_wait, time.monotonic() - started)
            if notice in lines:
                break
        ada.send("marker")
        lines += grace.lines_until("Ada: marker")
        check_received([line for line in lines if not line.startswith("Ada")],
                       [notice])
        self.assertLess(longest_wait, 1, "seconds until a message arrived")
        self.run_dialogue(f"Ada > /who\nAda < {notice}|{ONLINE}")

    def test_slow_client_receives_nothing_after_partial_line(self):
        slow, = self.start_room("Slow")
        client = self.connection_of("Slow")
        with mock.patch.object(self.server, "disconnect_client"):
            self.server.deliver_to_client(client, [b"x" * 8 * 1024 * 1024])
            self.assertEqual(client.socket.fileno(), -1, "It is not closed.")
        self.assertEqual(slow.reader.read().strip(b"x"), b"")

    def test_reply_to_closed_connection_affects_nobody(self):
        self.start_room("Ada", "Grace", "Bob")
        bob = self.connection_of("Bob")
        # Two threads can do this. The others are notified once.
        self.server.disconnect_client(bob)
        self.server.disconnect_client(bob)
        self.run_dialogue("Bob <")
        wait_until(lambda: bob.socket.fileno() == -1)
        self.server.reply(bob, "* late")
        self.run_dialogue("Ada > hello\nGrace < * Bob left|Ada: hello")


class SlowClientWithoutDontwaitTest(SlowClientTest):
    """The same tests with what the server does on Windows."""

    def setUp(self):
        super().setUp()
        self.patch(chat_server, "MSG_DONTWAIT", 0)


# --- The server: traffic and its limits ---

class TrafficTest(ChatTest):
    def test_all_clients_receive_all_messages_in_one_order(self):
        nicknames = [f"Client {number}" for number in range(30)]
        texts = [f"message {number}" for number in range(25)]
        listener, *senders = self.start_room("Listener", *nicknames)
        for text in texts:
            for sender in senders:
                sender.send(text)
        lines = [listener.line() for _ in range(750)]
        for nickname, sender in zip(nicknames, senders):
            own = [f"{nickname}: {text}" for text in texts]
            check_received([line for line in lines if line in own], own)
            others = [line for line in lines if line not in own]
            check_received([sender.line() for _ in others], others)

    def test_rate_limit_delays_but_never_drops_lines(self):
        started = time.monotonic()
        grace, = self.start_room("Grace", rate=200)
        seconds = []
        # The second connection of a computer has no allowance of its own. A
        # line of 2,560 bytes counts as ten.
        for nickname, texts in (("Ada", list(map(str, range(190)))),
                                ("Alan", ["x" * 2560] * 24)):
            self.connect_client(nickname).send(*texts, "/quit")
            grace.expect(f"* {nickname} joined",
                         *[f"{nickname}: {text}" for text in texts],
                         f"* {nickname} left")
            seconds.append(time.monotonic() - started)
        # After a pause, the lines of two seconds can be sent immediately.
        self.assertLess(seconds[0], 0.9)
        self.assertGreater(seconds[1], 0.15)

    @linux_only
    def test_flood_from_one_computer_disconnects_nobody_else(self):
        ada, _ = self.start_room("Ada", "Slow", rate=20)
        started = time.monotonic()
        for number in range(100):
            flooder = self.connect_to(self.server, computer=OTHER_COMPUTER)
            flooder.send(f"Flooder {number}", *["x" * 250] * 39)
            if number % 2:
                flooder.shutdown_write()
        ada.send("/who")
        lines = []
        while time.monotonic() < started + 0.1:
            lines.append(ada.line())
        self.assertLess(len(lines), 50 + 20 * (time.monotonic() - started),
                        "lines of one computer")
        self.assertRegex("|".join(lines),
                         r"^(?!.*Slow left).*\* Online .* Ada, Slow")

    @linux_only
    def test_clients_that_reset_do_not_exceed_the_limit_of_threads(self):
        program = self.start_server_process("--rate", "10")
        # All are reset before the server accepts them.
        program.process.send_signal(signal.SIGSTOP)
        for _ in range(300):
            client = self.connect_to(program)
            client.send(":")
            client.reset()
        program.process.send_signal(signal.SIGCONT)
        client = self.connect_to(program)
        client.line()
        self.assertLess(process_status(program.process.pid, "Threads"), 110)
        # Lines that were not processed do not count for the rate limit.
        client.send("Ada")
        client.expect("* Welcome, Ada!")

    @linux_only
    def test_computer_can_have_100_connections_unless_rate_is_0(self):
        for rate, answer in ((20, TOO_MANY), (0, PROMPT)):
            self.start_room(rate=rate)
            for _ in range(100):
                client = self.connect_to(self.server, computer=OTHER_COMPUTER)
                client.send(*["hello"] * 20)
                client.expect(PROMPT)
            self.connect_to(self.server, computer=OTHER_COMPUTER).expect(
                answer, *[END] * bool(rate))

    def test_due_times_are_deleted_later_and_bounded_for_long_lines(self):
        ada, = self.start_room("Ada", rate=20)
        now = time.monotonic()
        self.server.due_times = {"192.0.2.1": now - 2}
        ada.send("x" * 30_000)
        ada.expect(TOO_LONG)
        check_received(list(self.server.due_times), [HOST])
        self.assertLess(self.server.due_times[HOST], now)


# --- The server: sockets, threads and errors ---

class ErrorTest(ChatTest):
    def test_connection_has_keepalive_and_two_buffers(self):
        self.start_room("Ada")
        connection = self.connection_of("Ada").socket
        self.assert_options(connection)
        # Linux doubles the sizes that it is told to set.
        for buffer, size in ((socket.SO_SNDBUF, 262_144),
                             (socket.SO_RCVBUF, 65_536)):
            self.assertIn(connection.getsockopt(socket.SOL_SOCKET, buffer),
                          (size, 2 * size))

    def test_error_in_socket_options_is_ignored(self):
        self.patch(chat_server, "SOCKET_OPTIONS",
                   {"TCP_KEEPIDLE": -1, "SO_UNKNOWN": 1})
        self.start_room("Ada")

    def test_send_error_affects_one_client_only(self):
        self.start_room("Ada", "Grace")
        for error in (OSError, ValueError, MemoryError):
            client = self.connect_client("Bob")
            send_nowait = mock.Mock(side_effect=error)
            self.connection_of("Bob").send_nowait = send_nowait
            self.run_dialogue("""
                Ada > hello
                Grace < * Bob joined|Ada: hello|* Bob left""")
            client.expect(END)

    @posix_only
    def test_client_that_resets_its_connection_leaves_while_delayed(self):
        _, bob = self.start_room("Ada", "Bob", rate=1)
        self.server.due_times.clear()
        # The server waits a tenth of the time that it intends to wait.
        wait = threading.Event.wait
        self.patch(threading.Event, "wait", lambda event, seconds=None:
                   wait(event, seconds and seconds / 10))
        # After so long a line, the others have to wait for 15 seconds. They
        # fill the system's buffers.
        bob.socket.setblocking(False)
        bob.socket.send(b"last words" + b"\0" * 4000 + b"\n" * 4_000_000)
        self.run_dialogue("Ada < Bob: last words")
        bob.reset()
        started = time.monotonic()
        self.run_dialogue("Ada < * Bob left")
        self.assertLess(time.monotonic() - started, 1, "seconds to leave")

    def test_connection_error_is_logged_unless_server_closed_it(self):
        recv = socket.socket.recv

        # On Windows, recv raises an error when its own socket is closed.
        def recv_or_raise(connection, size):
            data = recv(connection, size)
            if not data:
                raise OSError("broken")
            return data
        self.patch(socket.socket, "recv", recv_or_raise)
        with self.assertLogs(level="INFO") as log:
            self.start_room()
            for nickname in ("Grace", ""):
                client = self.connect_client(nickname)
                thread = self.connection_of(nickname).thread
                client.shutdown_write()
                thread.join()
            self.connect_client()
            self.stop_server(self.server)
        lost = f"from {HOST} lost the connection (broken)"
        check_received(log.output, [
            f"INFO:chat_server:Grace joined from {HOST}",
            f"INFO:chat_server:Grace {lost}", "INFO:chat_server:Grace left",
            f"INFO:chat_server:unnamed client {lost}"])

    def test_reset_before_accept_causes_no_delay_and_no_log_line(self):
        accept = socket.socket.accept
        # PyPy raises the last one after a signal.
        errors = [ConnectionAbortedError, ConnectionResetError,
                  BlockingIOError] * 10

        # macOS can return None as the address.
        def accept_after_errors(listener):
            if errors:
                raise errors.pop()
            return accept(listener)[0], None
        self.patch(socket.socket, "accept", accept_after_errors)
        started = time.monotonic()
        with self.assertLogs(level="INFO") as log:
            self.start_room("Ada")
            wait_until(lambda: log.output)
        self.assertLess(time.monotonic() - started, 2, "seconds to join")
        check_received(log.output, ["INFO:chat_server:Ada joined from "])

    def test_running_out_of_threads_or_memory_is_logged(self):
        error = RuntimeError("can't start new thread")
        with self.assertLogs(level="ERROR") as log:
            with mock.patch("socket.socket.accept", side_effect=MemoryError):
                self.start_room()
                wait_until(lambda: log.output)
            self.connect_client("Ada")
            with mock.patch.object(threading.Thread, "start",
                                   side_effect=error):
                self.connect_to(self.server).expect(END)
            self.connect_client("Bob").send("hello", "/quit")
            self.run_dialogue("Ada < * Bob joined|Bob: hello|* Bob left")
        line = "ERROR:chat_server:Cannot accept connections: "
        check_received(log.output, [line, f"{line}{error}"])

    def test_stop_ends_all_threads(self):
        before = set(threading.enumerate())
        self.start_room("Ada")
        unnamed = self.connect_client()
        # A thread needs some time to end.
        with mock.patch.object(self.server, "disconnect_client",
                               lambda client: time.sleep(0.05)):
            self.stop_server(self.server)
        check_received(set(threading.enumerate()) - before, set())
        self.run_dialogue(f"Ada < {STOPPED}|")
        unnamed.expect(STOPPED, END)

    def test_delivery_thread_ends_when_a_reply_is_queued_after_stop(self):
        server = chat_server.ChatServer(HOST, 0, 0)
        server.queue([], chat_server.STOP)
        server.queue([], b"late\n")
        server.delivery_thread.start()
        server.delivery_thread.join(DEADLINE)
        self.assertFalse(server.delivery_thread.is_alive())


# --- The server program: start ---

class StartTest(ChatTest):
    CHOOSE = r"The port is in use or reserved\. Choose .* with --port\.\n"
    RESERVED = """
import errno, socket
def bind(*arguments):
    raise OSError(errno.EACCES, "denied")
socket.socket.bind = bind"""
    NO_IPV6 = """
import socket
socket.has_dualstack_ipv6 = lambda: False"""

    def test_printed_command_is_correct(self):
        hosts = ["localhost"]
        with contextlib.suppress(OSError):  # no ::1
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
            hosts.append("::1")
        for host in hosts:
            program = self.start_server_process("--host", host)
            command = (r"^Only this computer can join: python "
                       r"chat_client\.py --port (\d+) --host (\S+)$")
            self.assertRegex(program.start_lines[1], command)
            self.assertIn("--host 0.0.0.0", program.line())
            match = re.match(command, program.start_lines[1])
            ada = RawClient(*match.groups())
            self.addCleanup(ada.close)
            ada.join("Ada")

    # On Windows, this would make the firewall ask a question.
    @posix_only
    def test_printed_command_has_address_when_all_interfaces_are_open(self):
        program = self.start_server_process("--host", "0")
        # Without a network, there is no address.
        self.assertRegex(
            program.start_lines[1], "^On the other computers: python chat"
            rf"_client\.py --port {program.port}( --host (?!0)\S+)?$")

    def test_join_instructions_need_no_network(self):
        self.assertIn("Only this computer",
                      chat_server.join_instructions("127.0.1.1", 7500))
        start = "On the other computers: python chat_client.py --port 7500"
        with mock.patch("chat_server.socket.socket") as socket_class:
            udp_socket = socket_class.return_value.__enter__.return_value
            udp_socket.getsockname.return_value = ("192.0.2.7", 9)
            for host in ("0.0.0.0", "::", "192.0.2.7"):
                check_received(chat_server.join_instructions(host, 7500),
                               f"{start} --host 192.0.2.7")
            # The connect of a UDP socket sends nothing.
            self.assertIn("SOCK_DGRAM", str(socket_class.call_args))
            udp_socket.connect.side_effect = OSError
            self.assertRegex(chat_server.join_instructions("0.0.0.0", 7500),
                             rf"^{start}\nThere, .*ipconfig")

    def test_invalid_options_are_reported_in_one_line(self):
        other_server = socket.create_server((HOST, 0))
        self.addCleanup(other_server.close)
        port = other_server.getsockname()[1]
        cases = (
            (f"--port {port}", rf"1 .* {port}: {self.CHOOSE}"),
            ("--port 80", rf"1 .* 80: {self.CHOOSE}", self.RESERVED),
            ("--host ::", r"1 (?!.*--port).* :: .*\n", self.NO_IPV6),
            # Reserved for documentation (RFC 5737), and an invalid name.
            ("--port 65535 --host 203.0.113.1",
             r"1 (?!.*--port).*203\.0\.113\.1.*\n"),
            ("--port 0 --host é..b", r"1 (?!.*--port).*\.\.b.*\n"),
            ("--port 65536", "1 .* port must be .*\n"),
            ("--port -1", "1 .* port must be .*\n"),
            ("--port 0 --rate -1", "2 (?s:.*)error: .*--rate.*\n"))
        # They run at the same time. Without checks: create_server does not
        # close its socket when the name of the host is invalid.
        programs = [
            ManagedProcess(*script("chat_server", *setup), *options.split(),
                           checks=False) for options, _, *setup in cases]
        for program, (options, pattern, *_) in zip(programs, cases):
            result = f"{program.wait()} {program.output}{program.log}"
            self.assertRegex(result, rf"\A{pattern}\Z")


# --- The server program: log ---

class LogTest(ChatTest):
    # A shell like IDLE's: a file without a reconfigure method.
    IDLE = """
class Shell:
    write, flush = sys.stdout.write, sys.stdout.flush
sys.stdout = Shell()"""
    ASCII = "sys.stdout.reconfigure(encoding='ascii', errors='strict')"

    def log_of_chat(self, *options, **arguments):
        """Let clients join, chat and leave. Return the lines of the log."""
        program = self.start_server_process(*options, **arguments)
        self.join_clients(program, "Grace", "Ada")
        rejected = self.connect_to(program)
        rejected.send("Ada", "/quit")
        rejected.lines_until(END)
        self.run_dialogue("""
            Ada > hello|/quit
            Grace < Ada: hello|* Ada left
            Grace > /quit
            Grace <""")
        program.stop()
        return re.findall(r"(?m)^\d\d:\d\d:\d\d (.+)$", program.output)

    @posix_only
    def test_log_shows_joins_messages_and_departures(self):
        check_received(sorted(self.log_of_chat()), [
            "Ada joined from 127.0.0.1", "Ada left", "Ada: hello",
            "Grace joined from 127.0.0.1", "Grace left",
            "The chat server has stopped."])

    @posix_only
    def test_quiet_log_is_empty(self):
        check_received(self.log_of_chat("--quiet"), [])

    def test_log_shows_all_characters_in_every_console(self):
        for setup, text in ((self.IDLE, "é漢"), (self.ASCII, r"\xe9\u6f22")):
            program = self.start_server_process(setup=setup)
            self.connect_to(program, "Ada").send("é漢")
            program.wait_for_log(f"Ada: {text}\n")

    def test_paused_console_does_not_block_the_room_or_the_end(self):
        # The watchdog waits for 0.1 seconds only.
        program = self.start_server_process(
            "--rate", "0", paused=True, setup="""
Timer = chat_server.threading.Timer
chat_server.threading.Timer = lambda delay, *args: Timer(0.1, *args)""")
        ada, grace = self.join_clients(program, "Ada", "Grace")
        # This is several times as much as a pipe holds.
        for number in range(250):
            ada.send(f"{number:04000}")
            grace.expect(f"Ada: {number:04000}")
        if POSIX:
            program.process.terminate()
            check_received(program.process.wait(DEADLINE), 0)

    @posix_only
    def test_chat_goes_on_when_the_reader_of_its_log_has_ended(self):
        # The second prints its errors where it prints the log.
        programs = [ServerProcess(setup=setup, paused=True)
                    for setup in ("", "os.dup2(1, 2)")]
        for program in programs:
            self.addCleanup(program.kill)
            program.line()  # the third and last
            program.process.stdout.close()
            self.join_clients(program, "Ada", "Grace")
            self.run_dialogue("Ada > hello\nGrace < Ada: hello")
            program.process.send_signal(signal.SIGINT)
            # This ends the wait in accept.
            self.connect_to(program)
        check_received(
            [(program.wait(), program.log) for program in programs],
            [(0, "Cannot print the log.\n"), (0, "")])


# --- The server program: limits of the system ---

class SystemLimitTest(ChatTest):
    @unittest.skipUnless(resource, "Windows cannot limit open files")
    def test_running_out_of_file_descriptors_is_logged_once(self):
        program = self.start_server_process(setup="""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))""")
        self.connect_to(program, "Bob").send("/quit")
        # Python 3.8 on Linux opens a library when its first thread ends: it
        # must do so before there are no file descriptors left.
        program.wait_for_log("Bob left")
        self.join_clients(program, "Ada", "Grace")
        clients = [self.connect_to(program) for _ in range(30)]
        problem = "Cannot accept connections"
        program.wait_for_log(problem)
        self.run_dialogue("Ada > hello\nGrace < Ada: hello")
        check_received(program.output.count(problem), 1)
        for client in clients:
            client.close()
        self.connect_to(program, "Alan")
        self.run_dialogue("Ada < * Alan joined")


# --- The server program: stop ---

@posix_only
class StopTest(ChatTest):
    # SIGUSR1 gets the name of the signal that Ctrl+Break sends on Windows.
    BREAK = """
import signal
class Break(int):
    name = "SIGBREAK"
signal.Signals = [*signal.Signals, Break(signal.SIGUSR1)]"""
    STOP_TWICE = BREAK + """
import atexit
numbers = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1
handlers = [signal.getsignal(number) for number in numbers]
atexit.register(lambda: print("Handlers are restored:", handlers == [
    signal.getsignal(number) for number in numbers]))
stop = chat_server.ChatServer.stop
def stop_twice(server):
    os.kill(os.getpid(), signal.SIGINT)
    stop(server)
chat_server.ChatServer.stop = stop_twice"""

    def test_stop_notifies_all_clients_and_frees_the_port(self):
        port = 0
        for number in (signal.SIGTERM, signal.SIGUSR1):
            program = self.start_server_process(
                "--port", str(port), setup=self.BREAK)
            clients = [self.connect_to(program, f"Client {index}")
                       for index in range(10)]
            program.stop(number)
            for client in clients:
                client.lines_until(STOPPED)
                client.expect(END)
            self.assertNotIn(" left", program.output)
            port = program.port

    def test_second_ctrl_c_is_ignored_until_server_has_stopped(self):
        program = self.start_server_process(setup=self.STOP_TWICE)
        ada = self.connect_to(program, "Ada")
        program.stop()
        ada.expect(STOPPED, END)
        # IDLE goes on after this.
        self.assertRegex(
            program.output,
            "The chat server has stopped.\nHandlers are restored: True\n")

    def test_stop_notifies_clients_when_ctrl_c_raises_an_exception(self):
        # bpython sets its own handler again at each print.
        program = ServerProcess(setup="""
import signal
signal.signal = lambda number, handler: None""")
        self.addCleanup(program.kill)
        ada = self.connect_to(program, "Ada")
        program.process.send_signal(signal.SIGINT)
        ada.expect(STOPPED, END)
        program.wait_for_log("KeyboardInterrupt")

    def test_stop_is_not_delayed_by_joins_resets_or_a_flood(self):
        program = self.start_server_process()
        clients = [self.connect_to(program) for _ in range(90)]
        for number, client in enumerate(clients):
            client.send(f"Client {number}")
        # The rate limit delays all other lines.
        for client in clients:
            client.send(*["x" * 4500] * 7)
        for client in clients[::3]:
            client.reset()
        self.keep_sending(clients[1], b"hello\n" * 1000)
        self.assertLess(program.stop(), 2, "seconds to stop")


# --- The client: the connection ---

Address = collections.namedtuple("Address", "host port")
# No server listens on this port.
NOWHERE = Address(HOST, 1)


def read_until_closed(connection):
    """Read until the client closes the connection. Send nothing."""
    while connection.recv(65536):
        pass


def send_chunks(*chunks):
    """Return a handler that sends these chunks (bytes) separately."""
    def handler(connection):
        for chunk in chunks:
            connection.sendall(chunk)
            # Without this pause, the system could join two of them.
            time.sleep(0.01)
        read_until_closed(connection)
    return handler


class ClientTestCase(ChatTest):
    """Starts clients and stub servers, and cleans up after each test."""

    def start_stub_server(self, handler, buffer=65536):
        """Start a server that passes one connection to a handler.

        buffer: bytes that the system keeps while the handler does not read.
        """
        listener = socket.create_server((HOST, 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)

        def serve():
            with contextlib.suppress(OSError):  # The client has disconnected.
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(DEADLINE)
                    handler(connection)

        def stop():
            # If there is no connection, this ends the wait in accept.
            socket.create_connection(address, DEADLINE).close()
            thread.join()
            listener.close()
        address = Address(*listener.getsockname())
        thread = threading.Thread(target=serve)
        thread.start()
        self.addCleanup(stop)
        return address

    def start_client(self, server, *options, **arguments):
        """Start the client in a process, for this server."""
        client = ClientProcess("--host", server.host, "--port",
                               str(server.port), *options, **arguments)
        self.addCleanup(client.kill)
        return client


class ConnectionTest(ClientTestCase):
    def connect(self, server, nickname="Ada"):
        """Return a client that connects to this server."""
        client = chat_client.ChatClient(server.host, server.port, nickname)
        client.start()
        self.addCleanup(client.close, DEADLINE)
        return client

    def receive(self, client, seconds=DEADLINE):
        """Return the next (kind, value) from a client, or None."""
        try:
            return client.incoming.get(timeout=seconds)
        except queue.Empty:
            return None

    def expect(self, client, *lines):
        """Assert that a client receives exactly these lines next."""
        check_received([self.receive(client) for _ in lines],
                       [("line", line) for line in lines])

    def join(self):
        """Return a ChatClient (Ada L.) and a RawClient (Grace)."""
        server = self.start_server()
        grace = self.connect_to(server, "Grace")
        # White space can contain line endings.
        ada = self.connect(server, " Ada\nL. ")
        self.expect(ada, "* Welcome, Ada L.!", "* Online (2): Grace, Ada L.")
        grace.expect("* Ada L. joined")
        return ada, grace

    def assert_fails(self, server, reason, nickname="Ada",
                     error_type=chat_client.ChatError):
        """Assert that joining fails for this reason (a regular expression).

        The connection must also be closed.
        """
        client = self.connect(server, nickname)
        kind, error = self.receive(client) or ("nothing", None)
        check_received((kind, type(error)), ("error", error_type), error)
        self.assertRegex(str(error), reason)
        client.thread.join(DEADLINE)
        self.assertFalse(client.thread.is_alive(), "still connected")

    def test_connection_is_kept_alive_during_a_long_silence(self):
        self.patch(chat_client, "JOIN_TIMEOUT", 0.1)
        ada, grace = self.join()
        self.assert_options(ada.socket)
        ada.send_message("hello")
        grace.expect("Ada L.: hello")
        check_received(self.receive(ada, 0.15), None)
        grace.send("good morning")
        self.expect(ada, "Grace: good morning")

    def test_message_is_not_sent_when_it_has_more_than_4096_bytes(self):
        ada, grace = self.join()
        with self.assertRaisesRegex(chat_client.ChatError, "4096.*4100"):
            ada.send_message("🙂" * 1025)
        # Python makes this of a byte that is not UTF-8.
        ada.send_message("caf\udce9")
        grace.expect("Ada L.: caf?")

    def test_control_characters_are_removed_from_received_lines(self):
        unsafe = "\r\0\x0c\x1b\x1f\x7f\x9f\u2028\u202e\u2066\u2069"
        # This server does not request a nickname.
        client = self.connect(self.start_stub_server(send_chunks(
            f"Hi\r\none{unsafe}two\ncaf".encode() + b"\xe9\n",
            *[bytes([byte]) for byte in "* é漢🙂\n".encode()])))
        self.expect(client, "Hi", "onetwo", "caf\ufffd", "* é漢🙂")

    def test_reason_is_reported_when_connecting_fails(self):
        def hang_up(connection):
            connection.sendall(b"NICK Choose a nickname.\n")
            # Unread data turns the end of the connection into a reset.
            connection.recv(1)
        for host, port, reason in (
                ("", 1, "^Type only the server's name"),
                (HOST, 0, "^The port must be a number from 1 to 65535"),
                (HOST, 65536, "^The port must be a number"),
                (HOST, "\u00b2", "^The port must be a number"),
                (HOST, "9" * 5000, "^The port must be a number"),
                ("127.0.0.1:7500", 1, "^Type only the .* address"),
                ("http://127.0.0.1", 1, "^Type only the .* address"),
                # Windows knows this form of the address.
                ("[::1]", 1, r"^Cannot (find|connect to) .*\[::1\]"),
                ("::1", 1, "^Cannot connect to ::1 port"),
                # Copied from somewhere, with invisible characters.
                (f"\u202a {HOST}\u200e ", 1, f"^Cannot connect to {HOST} "),
                ("no.invalid", 1, "^Cannot find .* no.invalid"),
                # This name is not even sent to a name server.
                ("a..b", 1, r"^Cannot find .* a\.\.b"),
                (HOST, 1, f"^Cannot connect to {HOST} port"),
                (*self.start_stub_server(hang_up),
                 "^The connection to the server was lost")):
            self.assert_fails(Address(host, port), reason)
        for server, nickname, reason in (
                (NOWHERE, " ", "^Type a nickname"),
                (self.start_stub_server(send_chunks(b"NICK\nNICK 1 2\n")),
                 "Ada", "^1 2$")):
            self.assert_fails(server, reason, nickname,
                              chat_client.NicknameError)

    def test_join_timeout_is_not_extended_by_received_bytes(self):
        self.patch(chat_client, "JOIN_TIMEOUT", 0.05)
        # Longer than DEADLINE.
        for chunks in ([], [b"NICK\n"], [b"x"] * 1500):
            server = self.start_stub_server(send_chunks(*chunks))
            self.assert_fails(
                server, f"^{HOST} port {server.port} does not answer")

    def test_client_does_not_join_when_the_address_is_found_too_late(self):
        self.patch(chat_client, "JOIN_TIMEOUT", 0.05)
        timed_out = threading.Event()
        getaddrinfo = socket.getaddrinfo
        # Like a name server that does not answer.
        self.patch(socket, "getaddrinfo", lambda *arguments: timed_out.wait(
            DEADLINE) and getaddrinfo(*arguments))
        server = self.start_server()
        client = self.connect(server)
        self.assertRegex(str(self.receive(client)), "address, not a name")
        timed_out.set()
        client.thread.join(DEADLINE)
        check_received(server.members, {})

    @linux_only
    def test_name_with_three_silent_addresses_connects_to_the_fourth(self):
        self.patch(chat_client, "JOIN_TIMEOUT", 0.2)
        server = self.start_server()
        silent = socket.create_server((HOST, 0), backlog=0)
        self.addCleanup(silent.close)
        # Its queue is full: further connections get no answer.
        with RawClient(silent.getsockname()[1]).socket:
            found = [silent.getsockname()] * 3 + [(HOST, server.port)]
            self.patch(socket, "getaddrinfo", lambda *arguments: [
                (socket.AF_INET, socket.SOCK_STREAM, 0, "", address)
                for address in found])
            self.expect(self.connect(server), "* Welcome, Ada!")

    def test_long_line_is_one_line_and_the_end_is_reported_once(self):
        lines = [b"x" * length + b" Grace: forged"
                 for length in (8170, 8178, 8179, 8192, 30_000)]
        client = self.connect(self.start_stub_server(
            lambda connection: connection.sendall(
                b"\n".join([*lines, b"last words"]))))
        self.expect(client, *[line[:8192].decode() for line in lines],
                    "last words")
        kind, error = self.receive(client)
        check_received((kind, str(error)),
                       ("closed", "The server closed the connection."))
        check_received(self.receive(client, 0.05), None)
        with self.assertRaisesRegex(chat_client.ChatError, "^Not sent: "):
            client.send_message("hello")

    def test_close_waits_until_server_has_read_everything(self):
        received = []
        disconnect = threading.Event()

        def handler(connection):
            connection.sendall(b"Hi\n" + b"unread " * 1000)
            with connection.makefile("rb") as file:
                received.extend(file)
            disconnect.wait(DEADLINE)
            received.append("closed")
        client = self.connect(self.start_stub_server(handler))
        self.expect(client, "Hi")
        client.send_message("last words")
        client.close(0.05)
        self.assertTrue(client.thread.is_alive(),
                        "It does not wait for the server.")
        threading.Timer(0.05, disconnect.set).start()
        client.close(DEADLINE)
        check_received(received, [b"last words\n", "closed"])


# --- The client: the terminal ---

class ClientProcess(ManagedProcess):
    """chat_client.py in a process. setup: Python code to run first."""

    def __init__(self, *options, setup="", **arguments):
        super().__init__(*script("chat_client", setup), *options, **arguments)

    def send(self, *lines):
        print(*lines, sep="\n", file=self.process.stdin, flush=True)

    def expect_end(self, status, output="", errors=""):
        """Assert that it ends with this status, output and errors.

        errors: a regular expression.
        """
        ended = self.wait()
        printed = "".join(iter(self.lines.get, END))
        check_received((ended, printed), (status, output), self.log)
        unittest.TestCase().assertRegex(self.log, rf"\A{errors}\Z")

    def press_ctrl_c(self):
        # Python can miss a SIGINT just before it waits for input.
        for _ in range(5 * DEADLINE):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.2)
                return


def render(output):
    """Return the rows of a terminal with 8 rows after this output (str).

    Only the escape sequences that the client uses are known here, and what
    readline prints on a terminal that it does not know.
    """
    rows = [""] * 8
    x = y = 0
    moves = {"\n": 1, "\x1bD": 1, "\x1b[B": 1, "\x1b[A": -1}
    for code in re.findall(r"\x1b\[?.|.", output, re.DOTALL):
        y += moves.get(code, 0)
        if y == 8:
            y = 7
            rows = [*rows[1:], ""]
        if code == "\r":
            x = 0
        elif code == "\b":
            x -= 1
        elif code == "\x1b7":
            saved = x, y
        elif code == "\x1b8":
            x, y = saved
        elif code == "\x1b[L":
            rows[y:] = ["", *rows[y:7]]
        elif code not in moves:
            rows[y] = rows[y][:x] + code + rows[y][x + 1:]
            x += 1
    return rows


class TerminalTest(ClientTestCase):
    NOT_SENT = ("Not sent: a message can have at most 4096 bytes, and this "
                "one has 4097.")
    NO_TKINTER = """
import importlib
sys.modules["tkinter"] = None
importlib.reload(chat_client)"""
    LAST_WORDS = """
import io
chat_client.SECONDS_PER_LINE = 0
for number in range(3):
    sys.stdin = io.TextIOWrapper(io.BytesIO(b"last words %d" % number))
    chat_client.chat_in_terminal(sys.argv[2], int(sys.argv[4]), "Ada")
sys.exit()"""

    def start_text_client(self, server, nickname="Ada", **arguments):
        return self.start_client(server, "--text", "--nickname", nickname,
                                 **arguments)

    def chat(self, rate=0, setup=""):
        """Return a RawClient (Grace) and a process (Ada) in one room."""
        server = self.server = self.start_server(rate)
        grace = self.connect_to(server, "Grace")
        ada = self.start_text_client(server, setup=setup)
        self.clients_by_name = {"Grace": grace, "Ada": ada}
        self.run_dialogue("""
            Ada < * Welcome, Ada!|* Online (2): Grace, Ada
            Grace < * Ada joined""")
        return grace, ada

    def test_each_script_runs_when_copied_into_an_empty_folder(self):
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        path = shutil.copy(os.path.join(HERE, "chat_server.py"), folder)
        server = self.start_server_process(folder=folder)
        os.remove(path)
        shutil.copy(os.path.join(HERE, "chat_client.py"), folder)
        ada = self.start_text_client(server, folder=folder)
        ada.expect("* Welcome, Ada!", "* Online (1): Ada")

    def test_rejected_nickname_ends_the_client_when_input_is_a_pipe(self):
        server = self.start_server()
        grace = self.connect_to(server, "Grace")
        client = self.start_text_client(server, "")
        client.send("Grace", "first verse", "second verse")
        client.expect_end(1, "Nickname: ", "The nickname Grace is already.*\n")
        grace.send("/who")
        grace.expect("* Online (1): Grace")

    def open_terminal(self, server, term="unknown", nickname="Ada"):
        """Start the client in a terminal of 20 columns. Return its process.

        Afterwards, self.terminal is what a person types into, and is_raw()
        tells whether the line is being edited.
        """
        import fcntl
        import pty
        import termios  # not on Windows
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 8, 20, 0, 0))
        os.set_blocking(ours, False)
        self.output = b""
        self.addCleanup(os.close, ours)
        self.addCleanup(os.close, theirs)
        self.terminal = ours
        self.is_raw = lambda: not (
            termios.tcgetattr(theirs)[3] & termios.ICANON)
        self.shell_prompt = lambda: os.write(theirs, b"$ ")
        # stdin is a terminal: it becomes stdout and stderr also.
        return self.start_text_client(
            server, nickname, stdin=theirs, setup="os.dup2(0, 1); os.dup2"
            f"(0, 2); os.environ.update(COLUMNS='200', TERM='{term}')")

    def type(self, keys):
        """Type keys (bytes) while the line is being edited."""
        wait_until(self.is_raw)
        os.write(self.terminal, keys)

    def wait_for_rows(self, *rows):
        """Wait until these are the last rows of the terminal."""
        def last_rows():
            with contextlib.suppress(BlockingIOError):
                self.output += os.read(self.terminal, 65536)
            shown = render(self.output.decode("utf-8", "replace"))
            return list(filter(None, map(str.rstrip, shown)))[-len(rows):]
        wait_until(lambda: last_rows() == list(rows),
                   lambda: f"Shown: {last_rows()}\nExpected: {rows}")

    @posix_only
    def test_typed_row_stays_whole_in_a_terminal(self):
        server = self.start_server()
        grace = self.connect_to(server, "Grace")
        ada = self.open_terminal(server, nickname="Grace")
        self.wait_for_rows("The nickname Grace is already in use. Choose "
                           "another nickname.", "Nickname:")
        self.type(b"Ada\n")
        grace.expect("* Ada joined")
        self.type(b"I am typ")
        self.wait_for_rows("  Grace, Ada", "I am typ")
        grace.send("hello", "x" + " " * 10 + "Eve: hi", "⭐" * 12)
        self.wait_for_rows(
            "Grace: hello", "Grace: x", "  Eve: hi",
            "Grace: ⭐⭐⭐⭐⭐", "  ⭐⭐⭐⭐⭐⭐⭐", "I am typ")
        grace.send("漢" * 20)
        self.type(b"ing")
        self.wait_for_rows("Grace: 漢漢漢漢漢", "  漢漢漢漢漢漢漢漢漢",
                           "  漢漢漢漢漢漢", "I am typing")
        self.type(b"\n/quit\n")
        grace.expect("Ada: I am typing", "* Ada left")
        check_received(ada.wait(), 0)

    @posix_only
    def test_line_in_a_terminal_can_be_edited_pasted_and_read_whole(self):
        grace, = self.start_room("Grace")
        self.open_terminal(self.server, nickname="Alan")
        grace.expect("* Alan joined")
        left = b"\x1b[D"
        for keys, *lines in (
                (b"helo" + left + b"l", "hello"),
                (b"\x1b[A!", "hello!"),
                # Several pasted lines: the terminal marks them.
                (b"\x1b[200~one\ntwo\x1b[201~", "one", "two"),
                (b"x" * 4096, "x" * 4096)):
            self.type(keys + b"\n")
            grace.expect(*[f"Alan: {line}" for line in lines])
        # The typed row shows only a part of it.
        self.type(b"I can read all of this\n")
        self.wait_for_rows("You: I can read", "  all of this")
        self.type(b"x" * 5000 + b"\n")
        self.wait_for_rows("  bytes, and this", "  one has 5000.")

    @posix_only
    def test_terminal_is_usable_after_an_error_and_after_ctrl_c(self):
        for term, end, *rows in (
                ("unknown", lambda ada: self.stop_server(self.server),
                 "  the connection.", "half a line", "$"),
                # Here, lines are simply printed.
                ("dumb", ClientProcess.press_ctrl_c,
                 "* Grace left", "half a line", "$")):
            grace, = self.start_room("Grace")
            alan = self.open_terminal(self.server, term, "Alan")
            grace.expect("* Alan joined")
            grace.close()
            self.wait_for_rows("* Grace left")
            self.type(b"half a line")
            self.wait_for_rows("half a line")
            end(alan)
            check_received(alan.wait(), int(term == "unknown"))
            # It has a row of its own.
            self.shell_prompt()
            self.wait_for_rows(*rows)
            self.assertFalse(self.is_raw(), "What is typed is not shown.")
            check_received(b"\x1b7" in self.output, term == "unknown")

    def test_unusable_input_or_output_causes_no_traceback(self):
        setups = ["sys.stdin = None", "sys.stdin = open(os.devnull, 'w')",
                  "import io; sys.stdout = io.StringIO()",
                  # a broken pipe
                  "r, w = os.pipe(); os.close(r); sys.stdout = open(w, 'w')",
                  # Only Linux has this file.
                  *["sys.stdout = open('/dev/full', 'w')"] * LINUX]
        server = self.start_server()
        for setup, ada in [
                (setup, self.start_text_client(server, f"{n}", setup=setup))
                for n, setup in enumerate(setups)]:
            check_received(ada.wait(), 1, setup)
            # In IDLE and notebooks, they have no reconfigure method.
            errors = "" if "open" in setup else "--text .* IDLE, Thonny .*\n"
            self.assertRegex(ada.log, rf"\A{errors}\Z", setup)

    def test_pipes_are_utf8_and_errors_do_not_end_the_chat(self):
        self.chat(setup="for stream in (sys.stdin, sys.stdout):\n"
                        "    stream.reconfigure(encoding='ascii')")
        self.run_dialogue(f"""
            Ada > {"x" * 4097}|é🙂
            Ada < {self.NOT_SENT}
            Grace < Ada: é🙂
            Grace > é🙂
            Ada < Grace: é🙂""")

    def test_quit_ends_the_client_after_the_last_message(self):
        _, ada = self.chat()
        self.run_dialogue("""
            Ada >  /quit is a command|last words|/quit for today|not sent
            Grace < Ada:  /quit is a command|Ada: last words|* Ada left""")
        ada.expect_end(0)

    @posix_only
    def test_ctrl_c_ends_the_client_while_it_joins(self):
        connected = threading.Event()
        ada = self.start_text_client(self.start_stub_server(
            lambda connection: connected.set()
            or read_until_closed(connection)))
        connected.wait(DEADLINE)
        ada.press_ctrl_c()
        ada.expect_end(0, "\n")

    def test_end_of_input_ends_the_client_before_and_after_joining(self):
        ada = self.start_text_client(NOWHERE, "")
        ada.process.stdin.close()
        ada.expect_end(0, "Nickname: \n")
        server = self.start_server()
        grace = self.connect_to(server, "Grace")
        self.start_text_client(server, setup=self.LAST_WORDS)
        for number in range(3):
            grace.expect("* Ada joined", f"Ada: last words {number}",
                         "* Ada left")

    def test_long_input_arrives_when_the_rate_limit_delays_it(self):
        grace, ada = self.chat(100, "chat_client.SECONDS_PER_LINE = 0\n"
                               "chat_client.CLOSE_TIMEOUT = 0.1")
        # A line that has to wait looks again after float() seconds: 0.0.
        self.patch(chat_server.random, "random", float)
        # The server needs a fifth of a second for the last ones.
        ada.send(*map(str, range(220)))
        ada.process.stdin.close()
        grace.send("hello")
        for number in range(220):
            grace.expect(f"Ada: {number}")
        ada.expect_end(0, "Grace: hello\n")

    def test_piped_lines_are_sent_as_slowly_as_the_server_reads(self):
        grace, ada = self.chat(setup="chat_client.SECONDS_PER_LINE = 0.01")
        started = time.monotonic()
        ada.send(*["hello"] * 10)
        grace.expect(*["Ada: hello"] * 10)
        self.assertGreater(time.monotonic() - started, 0.08)

    def test_error_after_the_last_line_is_reported(self):
        def handler(connection):
            connection.sendall(b"Hi\n")
            read_until_closed(connection)
            # Then the end of this function closes it with a reset.
            RawClient.reset(mock.Mock(socket=connection))
        ada = self.start_text_client(self.start_stub_server(handler))
        ada.send("hello")
        ada.process.stdin.close()
        ada.expect_end(1, "Hi\nThe connection to the server was lost.\n")

    def test_end_of_connection_ends_the_client_while_it_waits_for_input(self):
        ada = self.start_text_client(self.start_stub_server(
            lambda connection: connection.sendall(b"last words\n")))
        # Its input is still open.
        ada.expect_end(1, "last words\nThe server closed the connection.\n")

    def test_missing_tkinter_or_display_is_reported(self):
        # Only X11 can run without a display.
        clients = [self.start_client(NOWHERE, setup=setup) for setup in (
            self.NO_TKINTER, *["os.environ['DISPLAY'] = ''"] * LINUX)]
        # The terminal needs neither of them.
        self.chat(setup=self.NO_TKINTER)
        for client in clients:
            client.expect_end(
                1, errors=".*(python3-tk|display).*--text.\n")

    def test_help_shows_the_default_of_each_option(self):
        for name in ("chat_server", "chat_client"):
            program = ManagedProcess(*script(name), "--help")
            program.wait()
            check_received(program.output.count("default:"), 3, name)


# --- The client: the window ---

class WindowTestCase(ClientTestCase):
    """Opens real windows and uses them as a person does."""

    # Elsewhere, Tk cannot simulate the Enter key of the number pad.
    ENTER_KEYS = ("Return", "KP_Enter") if LINUX else ("Return",)
    MODIFIER = "Command" if sys.platform == "darwin" else "Control"
    window = None

    @classmethod
    def setUpClass(cls):
        if not chat_client.tkinter:
            raise unittest.SkipTest("This Python has no Tkinter.")
        cls.tkinter = chat_client.tkinter
        try:
            cls.tkinter.Tk().destroy()
        except cls.tkinter.TclError as error:
            raise unittest.SkipTest(f"There is no display: {error}")

    def setUp(self):
        super().setUp()
        # If another thread collected Tk's objects, the process would crash.
        gc.disable()
        self.addCleanup(gc.enable)
        # An error in a callback fails the test.
        self.errors = []
        self.addCleanup(
            self.assertEqual, self.errors, [], "errors in the window")
        self.patch(
            self.tkinter.Tk, "report_callback_exception",
            lambda root, *error: self.errors.append(traceback.format_exc()))

    def open(self, server, nickname=""):
        """Open the window. Wait until it or the dialog is visible."""
        self.window = chat_client.ChatWindow(
            server.host, server.port, nickname)
        self.addCleanup(self.close)
        self.root = self.window.root
        self.listbox = self.window.message_listbox
        self.entry = self.window.entry_field
        self.button = self.window.send_button
        self.dialog = self.window.dialog
        self.pump(lambda: self.dialog_is_open()
                  or self.root.state() == "normal")

    def close(self):
        """Close the window as a window manager does, if it is open."""
        if self.window:
            # Without the focus, Tk before 8.6.13 can crash after closing.
            if self.is_open():
                self.root.focus_force()
                self.root.tk.eval(self.root.protocol("WM_DELETE_WINDOW"))
            self.assertFalse(self.root.tk.call("after", "info"),
                             "Timers are left after closing.")
        self.window = self.root = self.listbox = None
        self.entry = self.button = self.dialog = None
        gc.collect()

    def is_open(self):
        return self.root.tk.call("info", "commands", ".")

    def chat(self, *lines, server=None):
        """Let Ada (a window) and Grace (a RawClient) be in one room.

        Grace sends the lines.
        """
        self.server = server or self.start_server()
        self.grace = self.connect_to(self.server, "Grace")
        self.clients_by_name = {"Ada": self, "Grace": self.grace}
        self.open(self.server, "Ada")
        self.run_dialogue("""
            Grace < * Ada joined
            Ada < * Welcome, Ada!|* Online (2): Grace, Ada""")
        if lines:
            self.receive(*lines)

    def pump(self, condition, expected="see the test"):
        """Process events of the window until condition() is true."""
        def check():
            self.root.update()
            return condition()
        wait_until(check, lambda: f"Expected: {expected}\n{self.visible()}")

    def visible(self):
        """Return what is visible, for the message of a failed test."""
        return (f"Visible: title {self.root.title()!r}, "
                f"entry {self.entry.get()!r}, dialog {self.fields()} "
                f"{self.status()!r}, last rows {self.rows()[-9:]}")

    def wait_for_messages(self, *lines):
        """Wait until these are the last rows of the window."""
        self.pump(lambda: self.texts(len(lines)) == list(lines), lines)

    def receive(self, *lines):
        """Let Grace send lines, and wait until the last one is visible."""
        self.grace.send(*lines)
        self.wait_for_messages(f"Grace: {lines[-1]}")

    def wait_for_title(self, title):
        self.pump(lambda: self.root.title() == title, title)

    def focus(self, widget):
        """Give a widget the focus, even without a window manager."""
        self.pump(lambda: self.root.focus_displayof() == widget
                  or widget.focus_force())

    def press(self, widget, *keys):
        """Press keys (Tk's names for them) in a widget."""
        self.focus(widget)
        for key in keys:
            widget.event_generate(f"<{key}>")

    def send(self, *lines):
        """Put each line in the entry and press Return."""
        for line in lines:
            self.entry.delete(0, "end")
            self.entry.insert(0, line)
            self.press(self.entry, "Return")

    # run_dialogue calls send and expect.
    expect = wait_for_messages

    def rows(self):
        return list(self.listbox.get(0, "end"))

    def texts(self, count=20_000):
        """Return the last rows, or all, without their times."""
        first = max(0, self.listbox.size() - count)
        return [row[7:] for row in self.listbox.get(first, "end")]

    def assert_at_bottom(self):
        check_received(self.listbox.yview()[1], 1, "the end of the list")

    def dialog_is_open(self):
        """Return whether the dialog is open."""
        return self.dialog.window.state() != "withdrawn"

    def fields(self):
        """Return what the dialog contains: nickname, server and port."""
        return [field.get() for field in self.dialog.fields]

    def status(self):
        """Return the text under the button of the dialog, if visible."""
        label = self.dialog.status_label
        return str(label["text"]) if label.winfo_viewable() else ""

    def wait_for_status(self, start):
        self.pump(lambda: self.status().startswith(start), start)

    def fill_in(self, *values, key="Return"):
        """Fill in the first fields of the dialog and press a key there."""
        field = self.dialog.window
        for field, value in zip(self.dialog.fields, values):
            field.delete(0, "end")
            field.insert(0, value)
        self.press(field, key)


class DialogTest(WindowTestCase):
    def test_rejected_nickname_is_replaced_and_joining_opens_the_window(self):
        server = self.start_server()
        self.connect_to(server, "Grace")
        self.open(server)
        check_received(self.fields(), ["", HOST, str(server.port)])
        self.pump(lambda: self.dialog.window.focus_lastfor()
                  == self.dialog.fields[0])
        self.fill_in("Grace")
        self.wait_for_status("The nickname Grace is already")
        check_received(self.fields()[0], "Grace")
        # The rejected nickname is selected.
        self.press(self.dialog.window.focus_lastfor(), *"Eve")
        self.dialog.status_label.master.winfo_children()[-2].invoke()
        self.wait_for_messages("* Welcome, Eve!", "* Online (2): Grace, Eve")
        check_received((self.root.state(), self.dialog_is_open()),
                       ("normal", False))

    def test_dialog_shows_errors_and_keeps_input_focus_and_layout(self):
        self.open(NOWHERE, "Ada")
        label = self.dialog.status_label
        button = label.master.winfo_children()[-2]
        y = button.winfo_y()
        for host, port, reason in ((HOST, "1", "Cannot connect"),
                                   (HOST, "\u00b2", "The port must be"),
                                   ("a..b" * 30, "7500", "Cannot find")):
            self.fill_in("Ada", host, port)
            self.wait_for_status(reason)
            check_received(
                (self.root.state(), self.fields(), button.winfo_y(),
                 self.dialog.window.focus_lastfor()),
                ("withdrawn", ["Ada", host, port], y, self.dialog.fields[2]))
        check_received(
            (str(label["foreground"]), self.dialog.window.resizable()),
            (chat_client.ERROR_COLOR, (False, False)))
        # With another text size, the text still is as wide as the fields,
        # and never makes them wider: they would change each other endlessly.
        self.window.message_list.font.configure(size=28)
        field = self.dialog.fields[0]
        self.pump(lambda: label["wraplength"] == field.winfo_width()
                  > 500 > label.winfo_reqwidth())

    def test_dialog_stays_hidden_when_the_client_joins_immediately(self):
        self.chat()
        waited = []
        self.root.after(160, waited.append, True)
        self.pump(lambda: waited)
        self.assertFalse(self.dialog_is_open())
        # Escape, pressed while the answer arrived, changes nothing.
        self.window.cancel()
        self.run_dialogue("Ada > hello\nGrace < Ada: hello")

    def test_enter_connects_once_and_escape_cancels_while_connecting(self):
        closed = threading.Event()
        end = threading.Event()

        def handler(connection):
            read_until_closed(connection)
            closed.set()
            # The client does not wait for the server.
            end.wait(DEADLINE)
        server = self.start_stub_server(handler)
        self.addCleanup(end.set)
        threads = threading.active_count()
        self.open(server, "Ada")
        for _ in range(3):
            self.fill_in("Ada")
        check_received(self.status(), "Connecting…")
        check_received(threading.active_count(), threads + 2,
                       "threads: one for the client, one for its timer")
        started = time.monotonic()
        self.fill_in(key="Escape")
        self.assertLess(time.monotonic() - started, 0.5, "seconds")
        self.assertFalse(self.is_open())
        self.assertTrue(closed.wait(DEADLINE), "still connected")


class ReadingTest(WindowTestCase):
    SENTENCE = "A sentence of words that are not cut, " * 6
    LONG = (SENTENCE, "x" * 500, SENTENCE + "y" * 500 + " and more",
            "漢字仮名" * 60, "🙂🎉👍" * 50, ("words 🙂, " + "漢字仮名" * 8) * 9)

    def test_own_messages_notices_and_errors_have_colors(self):
        # Unread data turns the end of the connection into a reset.
        self.open(self.start_stub_server(
            lambda connection: connection.sendall(
                b"* Hi\n! no error\nGrace: * no notice\n")
            or connection.recv(1)), "Ada")
        self.wait_for_messages("* Hi", "! no error", "Grace: * no notice")
        self.send(self.SENTENCE)
        self.wait_for_messages("! The connection to the server was lost.")
        colors = [str(self.listbox.itemcget(row, "foreground"))
                  for row in range(self.listbox.size())]
        check_received(colors, [
            chat_client.NOTICE_COLOR, "", "",
            *[chat_client.OWN_COLOR] * (len(colors) - 4),
            chat_client.ERROR_COLOR])

    def test_list_follows_new_messages_only_at_the_bottom(self):
        self.patch(chat_client, "MAX_MESSAGES", 100)
        self.chat(*map(str, range(99)))
        self.assert_at_bottom()
        self.listbox.yview(50)
        self.root.update()
        top = self.listbox.get("@0,0")
        self.receive(*map(str, range(99, 120)))
        check_received(self.listbox.get("@0,0"), top)
        check_received(self.texts(), [f"Grace: {n}" for n in range(20, 120)])
        self.send("an own message")
        self.assert_at_bottom()

    def test_no_event_takes_100_ms_while_10000_lines_are_received(self):
        self.patch(chat_client, "POLL_INTERVAL_MS", 1)
        # Many short words: to wrap them takes time.
        lines = [f"{n}{' a' * 20}" for n in range(10_000)]
        self.open(self.start_stub_server(
            lambda connection: connection.sendall(b"Hi\n")
            or connection.recv(1)
            and connection.sendall("\n".join([*lines, ""]).encode())
            or read_until_closed(connection)), "Ada")
        self.wait_for_messages("Hi")
        times = []

        def tick():
            # Processor time, because other programs need time also.
            times.append(time.thread_time())
            self.root.after(1, tick)
        self.send("Now send all lines.")
        # Meanwhile, the window does something else.
        wait_until(lambda: self.window.client.incoming.qsize() == 10_000)
        tick()
        self.wait_for_messages(lines[-1])
        # seconds
        self.assertLess(max(after - before for after, before in zip(
            times[1:], times)), 0.1)

    def zoom(self, key, count):
        """Press Ctrl+plus or Ctrl+minus."""
        self.press(self.listbox, *[f"{self.MODIFIER}-{key}"] * count)

    def copied(self):
        """Copy the selected messages. Return the clipboard."""
        self.listbox.event_generate("<<Copy>>")
        return self.root.clipboard_get()

    def resize(self, width, height=400):
        """Resize the window, and wait until the rows are wrapped again."""
        rows = self.rows()
        self.root.geometry(f"{width}x{height}")
        self.pump(lambda: self.root.winfo_width() == width
                  and self.rows() != rows)

    def assert_wrapped(self, *texts):
        """Assert that Grace's messages are wrapped to the window's width."""
        check_received(self.listbox.xview(), (0, 1), "the visible part")
        measure = self.window.message_list.font.measure
        # The second rows of a message begin with a space.
        messages = re.split(r"\n(?! )", "\n".join(self.rows()))
        for text, message in zip(texts, messages[2:]):
            check_received("".join(message.split())[5:],
                           "".join(f"Grace: {text}".split()))
            first, *others = message.split("\n")
            self.assertGreater(min(map(measure, [first, *others[:-1]])),
                               self.listbox.winfo_width() / 2, "pixels")
            for row in others:
                self.assertAlmostEqual(
                    measure(row) - measure(row.lstrip()), measure(first[:7]),
                    delta=measure(" ") / 2 + 1)
        # No word of the sentence is cut.
        check_received(messages[2].split()[2:], texts[0].split())

    def test_long_messages_are_wrapped_again_when_the_width_changes(self):
        self.chat(*self.LONG, "marker")
        self.resize(400)
        self.assert_wrapped(*self.LONG)

    def test_control_plus_and_minus_change_the_text_size(self):
        self.chat(*self.LONG, "marker")
        font = self.window.message_list.font
        size = font["size"]
        width = self.root.winfo_width()
        rows = self.rows()
        self.listbox.selection_set(2, 9)
        copied = self.copied()
        self.root.clipboard_clear()
        self.zoom("plus", 5)
        self.root.update()
        check_received((font["size"], self.root.winfo_width()),
                       (size + 5, width), "size of text and of window")
        self.assert_wrapped(*self.LONG)
        self.zoom("minus", 5)
        check_received((font["size"], self.rows(), self.copied()),
                       (size, rows, copied), "The selection is kept also.")

    def test_messages_that_do_not_fit_are_shown_again_in_smaller_text(self):
        self.patch(chat_client, "MAX_ROWS", 50)
        self.chat(*["words that need several rows in large text"] * 40)
        rows = self.rows()
        self.zoom("plus", 27)
        self.pump(lambda: len(self.rows()) == 50)
        self.zoom("minus", 27)
        check_received(self.rows(), rows)

    def test_resized_list_stays_at_the_bottom_or_keeps_its_top_message(self):
        self.chat(*[f"{n} {self.SENTENCE}" for n in range(30)], "marker")
        self.resize(900, 600)
        self.assert_at_bottom()
        tenth = next(index for index, row in enumerate(self.rows())
                     if "Grace: 10 " in row)
        self.listbox.yview(tenth)
        # By then the window has noticed it.
        self.receive("more")
        self.resize(400)
        self.assertIn("Grace: 10 ", self.listbox.get("@0,0"))

    def test_messages_are_copied_without_their_wrapping(self):
        text = self.SENTENCE.strip()
        times = [time.strftime("%H:%M  * Welcome, Ada!")]
        self.chat(text, "hello", "hello", "🙂")
        times.append(time.strftime("%H:%M  * Welcome, Ada!"))
        self.assertIn(self.listbox.get(0), times)
        end = self.listbox.size()
        hello = "Grace: hello\nGrace: hello\nGrace: 🙂"
        for first, last, copied in ((3, 3, f"Grace: {text}"),
                                    (2, 4, f"Grace: {text}"),
                                    (end - 3, end, hello),
                                    # Nothing: the clipboard keeps its text.
                                    (end, end + 1, hello)):
            self.listbox.selection_clear(0, "end")
            self.listbox.selection_set(first, last)
            check_received(self.copied(), copied)

    def test_only_the_gui_thread_calls_tk(self):
        calls = []

        # Python calls this in all other threads.
        def profile(frame, event, function):
            owner = getattr(function, "__self__", None)
            if event == "c_call" and type(owner).__name__ == "tkapp":
                calls.append(function.__name__)
        threading.setprofile(profile)
        self.addCleanup(threading.setprofile, None)
        self.chat("hello")
        self.run_dialogue("Ada > good morning\nGrace < Ada: good morning")
        self.close()
        check_received(calls, [])


class WritingTest(WindowTestCase):
    def test_enter_or_send_button_sends_and_entry_keeps_the_focus(self):
        self.chat()
        self.pump(lambda: self.root.focus_lastfor() == self.entry)
        for key in self.ENTER_KEYS:
            self.press(self.entry, *"Hi", "space", *"all", key)
            self.run_dialogue("Grace < Ada: Hi all\nAda < You: Hi all")
        # The own message is shown as others see it.
        self.entry.insert(0, "mo\x07re\t\u202e!")
        # A click gives the button the focus.
        self.press(self.button, "Return")
        self.run_dialogue(
            "Grace < Ada: more !\nAda < You: Hi all|You: more !")
        self.pump(lambda: self.root.focus_get() == self.entry)
        check_received((self.entry.get(), str(self.button["text"])),
                       ("", "Send"))

    def test_enter_sends_at_most_40_pasted_lines_and_no_blank_lines(self):
        self.chat()
        lines = [str(number) for number in range(90)]
        self.root.clipboard_clear()
        self.root.clipboard_append("\n \t \r\n\n".join(lines))
        self.focus(self.entry)
        self.entry.event_generate("<<Paste>>")
        self.press(self.entry, "Return")
        check_received(self.entry.get(), "\n".join(lines[40:]))
        check_received(self.texts()[2:42],
                       [f"You: {line}" for line in lines[:40]])
        self.assertRegex(self.texts()[42], r"^\* Sent 40 lines\D* 50 ")
        self.press(self.entry, "Return", "Return")
        check_received(self.entry.get(), "")
        self.grace.expect(*[f"Ada: {line}" for line in lines])

    def test_too_long_line_stays_in_the_entry_with_all_after_it(self):
        self.chat()
        self.send("one\n" + "x" * 4097 + "\ntwo")
        self.grace.expect("Ada: one")
        check_received(self.entry.get(), "x" * 4097 + "\ntwo")
        self.assertRegex(" ".join(self.texts()[2:]),
                         "^You: one ! Not sent: [^x]*4096[^x]*$")
        self.send("x" * 4096)
        self.grace.expect("Ada: " + "x" * 4096)
        check_received(self.entry.get(), "")

    def test_commands_are_not_shown_and_quit_closes_the_window(self):
        for text in ("/quit", "/quit for today"):
            self.chat()
            self.run_dialogue(f"""
                Ada > /who
                Ada < * Online (2): Grace, Ada|* Online (2): Grace, Ada
                Ada > /home/ada/notes.txt
                Ada < * Online (2): Grace, Ada|You: /home/ada/notes.txt
                Ada > {text}
                Grace < Ada: /home/ada/notes.txt|* Ada left""")
            self.assertFalse(self.is_open())
            self.close()

    def test_slow_server_does_not_block_the_window(self):
        received = []
        reading = threading.Event()

        def handler(connection):
            connection.sendall(b"Hi\n")
            reading.wait(DEADLINE)
            with connection.makefile("r") as file:
                received.extend(file)
        self.patch(chat_client, "SOCKET_OPTIONS", {"SO_SNDBUF": 65536})
        self.open(self.start_stub_server(handler, buffer=4096), "Ada")
        self.addCleanup(reading.set)
        self.wait_for_messages("Hi")
        sent = []
        while not self.entry.get():
            sent.append(f"{len(sent)} {'x' * 3000}\n")
            self.send(sent[-1])
        check_received(self.entry.get(), sent[-1].strip())
        self.assertRegex(self.texts()[-1], "^! Not sent: .* busy")
        reading.set()
        self.pump(lambda: self.press(self.entry, "Return")
                  or not self.entry.get())
        self.close()
        check_received(received, sent)


class KeyboardTest(WindowTestCase):
    def test_keys_on_the_messages_type_copy_paste_and_send(self):
        self.chat()
        self.listbox.event_generate("<Button-1>", x=20, y=20)
        self.press(self.listbox, "h")
        self.pump(lambda: self.root.focus_get() == self.entry)
        # These type nothing.
        self.press(self.listbox, "BackSpace", "Up", f"{self.MODIFIER}-c",
                   f"{self.MODIFIER}-v")
        self.assertEqual(self.root.focus_get(), self.listbox)
        check_received(self.entry.get(), "h* Welcome, Ada!")
        self.press(self.listbox, "Return")
        self.grace.expect("Ada: h* Welcome, Ada!")

    @unittest.skipUnless(LINUX and shutil.which("setxkbmap"),
                         "The key codes and setxkbmap are those of X11.")
    def test_shortcuts_work_with_every_alphabet_and_with_caps_lock(self):
        self.chat()
        self.addCleanup(subprocess.run, ["setxkbmap", "us"], check=True)
        for layout in ("ru", "gr", "us"):
            subprocess.run(["setxkbmap", layout], check=True)
            self.entry.insert(0, layout)
            self.focus(self.entry)
            # The keys A, X, V, A, C and V: the text is there once more.
            for code in (38, 53, 55, 38, 54, 55):
                self.entry.event_generate("<Key>", keycode=code, state=4)
            check_received(self.root.clipboard_get(), layout)
            check_received(self.entry.get(), layout)
            self.entry.delete(0, "end")
        self.entry.insert(0, "one two")
        self.entry.event_generate("<Key>", keycode=38, state=4 | 2)
        check_received(self.entry.selection_get(), "one two")

    def test_alt_types_nothing_and_altgr_types_on_the_messages(self):
        self.chat()
        for system, state, char in (
                ("posix", 4, "a"), ("posix", 8, "b"), ("posix", 8 + 4, "C"),
                ("nt", 0x20000, "d"), ("nt", 0x20000 + 4, "E"),
                # NumLock
                ("nt", 8, "F")):
            with mock.patch.object(os, "name", system):
                self.window.redirect_key(mock.Mock(char=char, state=state))
        check_received(self.entry.get(), "CEF")

    def choose(self, widget, label):
        """Right-click a widget and choose from its context menu."""
        self.focus(widget)
        widget.event_generate("<Button-3>", x=20, y=20, rootx=9, rooty=9)
        menu = self.root.children["!menu"]
        # On X11, a click that slips chooses the first, which does no harm.
        check_received(menu.entrycget(0, "label"), "Copy")
        self.pump(menu.winfo_viewable)
        self.root.tk.call("tk::MenuUnpost", menu)
        self.pump(lambda: self.root.focus_get() == widget)
        menu.invoke(label)

    @unittest.skipUnless(LINUX, "Elsewhere, a menu blocks until it is closed.")
    def test_context_menu_cuts_copies_and_pastes(self):
        self.chat()
        self.entry.insert(0, "one two")
        self.entry.selection_range(0, 4)
        self.choose(self.entry, "Cut")
        check_received(self.root.clipboard_get(), "one ")
        # Only the message that is right-clicked is copied.
        self.listbox.selection_set(1)
        self.choose(self.listbox, "Copy")
        check_received(self.root.clipboard_get(), "* Welcome, Ada!")
        self.choose(self.listbox, "Paste")
        check_received(self.entry.get(), "two* Welcome, Ada!")

    def test_entry_has_keys_to_scroll_the_messages(self):
        self.chat(*map(str, range(100)))
        self.press(self.entry, "Prior")
        self.assertLess(self.listbox.yview()[1], 1)
        self.press(self.entry, "Next")
        self.assert_at_bottom()


class LookTest(WindowTestCase):
    def test_colors_have_a_contrast_of_4_5_on_white_and_on_black(self):
        for color in (chat_client.OWN_COLOR, chat_client.NOTICE_COLOR,
                      chat_client.ERROR_COLOR):
            # The definition in WCAG 2, for parts that are at least 11.
            red, green, blue = [((part / 255 + 0.055) / 1.055) ** 2.4
                                for part in bytes.fromhex(color[1:])]
            luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
            contrasts = 1.05 / (luminance + 0.05), (luminance + 0.05) / 0.05
            self.assertGreaterEqual(min(contrasts), 4.5, color)

    def test_long_history_is_wrapped_again_within_100_ms(self):
        self.chat()
        messages = self.window.message_list
        messages.messages = [chat_client.Message(text, "") for text in [
            *(f"{n} some words in a sentence {n % 99}" for n in range(5000)),
            *(f"{n} " + "x" * 4090 for n in range(50))]]
        for size in (13, 40):
            messages.font.configure(size=size)
            # Processor time, because other programs need time also.
            started = time.thread_time()
            messages.rewrap(messages.width)
            seconds = time.thread_time() - started
            # Measured on Linux. Elsewhere, fonts can be slower.
            self.assertLess(seconds, 0.1 if LINUX else 0.5, size)
            del messages.messages[-50:]

    def test_window_receives_messages_after_an_error_in_its_timer(self):
        self.chat()
        # With some open menus, Tk does this.
        with mock.patch.object(self.root, "focus_displayof",
                               side_effect=KeyError("popdown")):
            self.pump(lambda: self.errors)
        self.errors.clear()
        self.receive("hello")

    @unittest.skipUnless(hasattr(os, "RTLD_NOLOAD"), "Windows has no libXft.")
    def test_system_libraries_are_prepared_before_tk_starts(self):
        import ctypes
        # This happens without a display.
        self.patch(self.tkinter, "Tk",
                   mock.Mock(side_effect=self.tkinter.TclError))
        for version, hidden in ((20302, True), (20306, False)):
            # It stands for libXft, fontconfig, and shcore of Windows, where
            # high resolution has been enabled before (OSError).
            library = mock.Mock(**{
                "XftGetVersion.return_value": version,
                "FcConfigGetCurrent.return_value": 1,
                "SetProcessDpiAwareness.side_effect": OSError})
            load = mock.Mock(return_value=library)
            with mock.patch.multiple(ctypes, create=True, CDLL=load,
                                     OleDLL=load), \
                    contextlib.suppress(chat_client.ChatError):
                chat_client.open_window(HOST, 7500, "")
            check_received([name for name, *_ in library.method_calls], [
                "SetProcessDpiAwareness", "XftGetVersion", *[
                    "FcConfigGetCurrent", "FcConfigParseAndLoadFromMemory",
                    "FcConfigBuildFonts"] * hidden])


class UnreadTest(WindowTestCase):
    def test_messages_are_unread_until_the_user_sees_the_last_one(self):
        # For Tk, this could be the window of another program. Some functions
        # of Tkinter use the first window when they are not told which one.
        other = self.tkinter.Tk()
        self.addCleanup(other.destroy)
        self.chat(*map(str, range(100)))
        self.assertEqual(self.root.eval("font measure TkTextFont W"),
                         f"{self.window.message_list.text_width('W')}")
        self.focus(self.entry)
        self.wait_for_title("Chat - Ada")
        self.pump(lambda: other.update() or not self.root.focus_displayof()
                  or other.focus_force())
        self.receive("one", "two", "* three")
        self.connect_to(self.server, "Bob")
        self.wait_for_messages("Grace: * three", "* Bob joined")
        self.wait_for_title("(3) Chat - Ada")
        self.focus(self.entry)
        self.wait_for_title("Chat - Ada")
        self.listbox.yview(10)
        self.receive("four")
        self.wait_for_title("(1) Chat - Ada")
        self.listbox.yview("end")
        self.wait_for_title("Chat - Ada")


class ReconnectTest(WindowTestCase):
    def lose_connection(self):
        """Chat until the server closes the connection."""
        self.chat("hello")
        self.entry.insert(0, "half a sent")
        self.server.disconnect_client(self.connection_of("Ada"))
        self.wait_for_messages("Grace: hello",
                               "! The server closed the connection.")

    def test_join_timeout_error_is_shown_when_it_fires_during_joining(self):
        self.chat()
        client = self.window.client
        client.on_join_timeout()
        client.thread.join(DEADLINE)
        self.wait_for_title("Chat - Ada (connection lost)")
        text = "".join(self.texts())
        self.assertRegex(text, "! .* does not answer")
        check_received(text.count("!"), 2, "! in the welcome and the error")

    def test_lost_connection_is_shown_and_reconnect_needs_one_step(self):
        self.lose_connection()
        self.press(self.entry, "Return")
        self.assertRegex(" ".join(self.texts()),
                         "Grace: hello ! The server .* ! Not sent: .*$")
        check_received((self.entry.get(), str(self.button["text"])),
                       ("half a sent", "Reconnect"))
        self.wait_for_title("Chat - Ada (connection lost)")
        # The entry has the focus before the dialog, which has it, is hidden.
        self.listbox.focus()
        withdraw = self.dialog.window.withdraw
        focused = []
        self.patch(self.dialog.window, "withdraw", lambda: focused.append(
            self.root.focus_lastfor()) or withdraw())
        self.button.invoke()
        self.wait_for_messages("* Welcome, Ada!", "* Online (2): Grace, Ada")
        self.wait_for_title("Chat - Ada")
        check_received(focused, [self.entry])
        self.button.invoke()
        self.grace.expect("* Ada left", "* Ada joined", "Ada: half a sent")

    def test_reconnect_shows_error_in_the_dialog_above_the_window(self):
        self.lose_connection()
        self.stop_server(self.server)
        self.button.invoke()
        # Escape does not close the window.
        self.fill_in(key="Escape")
        self.assertFalse(self.dialog_is_open())
        self.button.invoke()
        self.wait_for_status("Cannot connect")
        check_received(str(self.dialog.window.transient()), str(self.root))
        server = self.start_server()
        self.fill_in("Ada L.", HOST, str(server.port))
        self.wait_for_messages("! The server closed the connection.",
                               "* Welcome, Ada L.!", "* Online (1): Ada L.")
        self.wait_for_title("Chat - Ada L.")


class ClosingTest(WindowTestCase):
    # The program does this when its window is visible, or its dialog if
    # there is no nickname, and prints the handler of Ctrl+C at its end.
    WHEN_VISIBLE = """
import atexit, signal
class Window(chat_client.ChatWindow):
    def __init__(self, *args):
        super().__init__(*args)
        self.root.after(0, self.when_visible)
    def when_visible(self):
        window = self.root if "--nickname" in sys.argv else self.dialog.window
        window.wait_visibility()
        {}
chat_client.ChatWindow = Window
atexit.register(lambda: print(signal.getsignal(signal.SIGINT).__name__))"""
    # As a window manager does it.
    CLOSE = "window.tk.eval(window.protocol('WM_DELETE_WINDOW'))"
    HANDLER = "default_int_handler\n"

    def start_window(self, *options, action):
        """Start the client in a process, with Grace in its server's room."""
        server = self.start_server()
        self.grace = self.connect_to(server, "Grace")
        return self.start_client(server, *options,
                                 setup=self.WHEN_VISIBLE.format(action))

    def test_closing_the_window_or_the_dialog_ends_the_program(self):
        dialog = self.start_window(action=self.CLOSE)
        # Another window does not keep the program running.
        window = self.start_window(
            "--nickname", "Ada",
            action=f"chat_client.tk = chat_client.tkinter.Tk(); {self.CLOSE}")
        self.grace.expect("* Ada joined", "* Ada left")
        window.expect_end(0, self.HANDLER)
        dialog.expect_end(0, self.HANDLER)

    @posix_only
    def test_second_ctrl_c_ends_the_wait_for_a_server(self):
        window_closed = threading.Event()
        end = threading.Event()
        server = self.start_stub_server(
            lambda connection: connection.sendall(b"Hi\n")
            or read_until_closed(connection) or window_closed.set()
            or end.wait(DEADLINE))
        self.addCleanup(end.set)
        window = self.start_client(
            server, "--nickname", "Ada",
            setup=self.WHEN_VISIBLE.format("print('open', flush=True)"))
        window.expect("open")
        window.process.send_signal(signal.SIGINT)
        window_closed.wait(DEADLINE)
        window.press_ctrl_c()
        window.expect_end(0, "\n" + self.HANDLER)

    def test_last_message_before_closing_always_arrives(self):
        for _ in range(2):
            self.chat()
            self.grace.send("not read")
            self.entry.insert(0, "last words")
            self.button.invoke()
            self.close()
            self.grace.expect("Ada: last words", "* Ada left")


# --- The README ---

class ReadmeTest(ChatTest):
    """What the README quotes, shows and names is correct."""

    @classmethod
    def setUpClass(cls):
        cls.readme, cls.server_code, cls.client_code, cls.test_code = (
            pathlib.Path(HERE, name).read_text(encoding="utf-8") for name in (
                "README.md", "chat_server.py", "chat_client.py",
                "test_chat.py"))
        cls.blocks = re.findall(
            r"(?ms)^```(?:python|text)\n(.*?)^```$", cls.readme)

    def test_readme_quotes_the_code(self):
        code = self.server_code + self.client_code
        quotes = [block for block in self.blocks
                  if block.startswith(("    def ", "def "))]
        self.assertGreater(len(quotes), 5)
        missing = [quote for quote in quotes if quote not in code]
        for name in re.findall(r"(?m)^ *(?:class|def) ([^_]\w*)", code):
            if not re.search(rf"\b{name}\b", self.readme):
                missing.append(name)
        self.assertEqual(
            "\n".join(missing), "", "The README quotes other code. If you "
            "have changed the code for an exercise, ignore this failure.")

    def test_readme_session_runs_as_printed(self):
        session = "".join(
            block for block in self.blocks if block.startswith(">>>"))
        session = session.replace("7500", str(self.start_server().port))
        test = doctest.DocTestParser().get_doctest(
            session, {}, "README", "README.md", 0)
        output = []
        result = doctest.DocTestRunner().run(
            test, out=output.append, clear_globs=False)
        for name in ("ada", "ada_lines", "grace", "grace_lines"):
            test.globs[name].close()
        self.assertEqual(result.failed, 0, "".join(output))
        self.assertGreater(result.attempted, 15)

    def test_readme_trace_lines_are_printed_in_this_order(self):
        server = self.start_server_process("--trace")
        clients = self.join_clients(server, "Grace", "Alan", "Ada")
        clients[2].send("Hello")
        clients[0].expect("Ada: Hello")
        eve = self.connect_to(server)
        for chunk in (b"Eve\nHel", b"lo\nCaf\xc3", b"\xa9?\n"):
            eve.send_bytes(chunk)
            server.wait_for_log(f"received {chunk!r}")
        traces = [line[9:] for block in self.blocks
                  for line in re.findall(r"(?m)^\d\d:\d\d:\d\d \[.*", block)]
        self.assertEqual(len(traces), 7)
        for line in traces:
            server.wait_for_log(line)
        # The delivery thread can log its step at any time.
        check_received(re.findall(r"(?m)^\S+ (\[Ada\] .*Hello.*)$",
                                  server.output), traces[:3])

    def test_readme_limits_are_correct(self):
        table = self.readme.split("### Limits")[1].split("###")[0]
        server, client = chat_server, chat_client
        options = server.SOCKET_OPTIONS
        seconds = (options["TCP_KEEPIDLE"]
                   + options["TCP_KEEPINTVL"] * options["TCP_KEEPCNT"])
        for row in (
                f"{server.MAX_LINE_BYTES} bytes: at least 1,024 characters |",
                f"{server.MAX_NICKNAME} characters | `MAX_NICKNAME`",
                f"{server.NICKNAME_TIMEOUT} seconds | `NICKNAME_TIMEOUT`",
                (f"{server.LINES_PER_SECOND} per second, after a pause "
                 f"{server.BURST_SECONDS} seconds' worth in one burst; a long "
                 f"line counts as one per {server.BYTES_PER_LINE} bytes |"),
                f"{server.MAX_CONNECTIONS} (with `--rate 0`",
                f"{options['SO_SNDBUF'] // 1024} KiB, and the buffers",
                f"after about {seconds} seconds | `SOCKET_OPTIONS`",
                f"{client.JOIN_TIMEOUT} seconds; {client.JOIN_TIMEOUT / 4} ",
                f"{client.CLOSE_TIMEOUT} seconds; a second Ctrl+C",
                f"{client.MAX_RECEIVED_BYTES} bytes; the rest is cut off |",
                f"{client.MAX_LINES_PER_SEND} | `MAX_LINES_PER_SEND`",
                f"{client.MAX_MESSAGES} | `MAX_MESSAGES`",
                f"{client.MAX_ROWS:,} | `MAX_ROWS`"):
            self.assertIn(f"| {row}", table)

    def test_readme_names_tests_that_exist(self):
        names = re.findall(r"\b(test_\w{9,})\b(?!\.py)", self.readme)
        self.assertGreaterEqual(len(names), 10)
        missing = [name for name in names
                   if f"def {name}(" not in self.test_code]
        self.assertEqual(missing, [])

    def test_naive_server_breaks_as_readme_shows(self):
        code, = re.findall(r"(?ms)^# naive.py\n.*?(?=^```$)", self.readme)
        code = code.replace("7500", "0").replace(
            "listen()\n", "listen()\nprint(server_socket.getsockname()[1])\n")
        naive = ManagedProcess("-u", "-c", code)
        self.addCleanup(naive.kill)
        address = Address(HOST, int(naive.line()))
        grace = self.connect_to(address)
        grace.expect("* Welcome!")
        ada = self.connect_to(address)
        ada.send_bytes(b"Ada: Hel")
        naive.expect("'Ada: Hel'")
        ada.send_bytes(b"lo\nGrace: I give you all my money.\n")
        naive.expect(r"'lo\nGrace: I give you all my money.\n'")
        grace.expect("Ada: Hello", "Grace: I give you all my money.")
        ada.send_bytes(b"Ada: Caf\xc3")
        naive.wait_for_log("UnicodeDecodeError")
        # Grace does not read any more.
        sender = self.connect_to(address)
        sender.socket.settimeout(0.1)
        with self.assertRaises(socket.timeout):
            for _ in range(100_000):
                sender.send_bytes(b"x" * 1000)


if __name__ == "__main__":
    unittest.main()
