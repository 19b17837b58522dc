"""A chat server: every line that one client sends goes to all the others.

Run it:     python chat_server.py                  (this computer alone can join)
            python chat_server.py --host 0.0.0.0   (everybody on the network can)
Join it:    python chat_client.py                  (or by hand: nc 127.0.0.1 7500)

Many threads read, one delivers: accept_connections starts a thread for each client. It runs
handle_client, which posts (recipients, bytes) to the outbox, and deliver_messages sends them.
"""
import argparse
import collections
import contextlib
import logging.handlers
import queue
import re
import select
import signal
import socket
import sys
import threading
import time
import unicodedata
from typing import Iterator, List

HOST, PORT = "127.0.0.1", 7500    # this computer alone
RATE, BURST = 20, 2      # lines a second; after a pause, this many seconds' worth at once
LONG_LINE = 256          # bytes; a line that is longer counts as several
MAX_LINE = 4096          # bytes: room for 1,024 characters of any alphabet
MAX_NICKNAME, NICKNAME_TIMEOUT = 20, 60    # characters; seconds to choose it
CHUNK_SIZE = 32 * 1024   # bytes for one recv or send


################ The room
class ChatServer:
    """A chat room. After start(), host and port say where it listens; port 0: any free one."""
    def __init__(self, host: str, port: int, rate: int = RATE):
        self.host, self.port, self.rate = host, port, rate
        self.connected_clients = set()
        self.room = {}                       # those who have a nickname: nickname_key -> Client
        self.lock = threading.RLock()        # to change or loop over these; R: even twice
        self.outbox = queue.SimpleQueue()    # (recipients, bytes); b"": close them; None: end

    def start(self):
        """Listen, and start the thread that delivers. Raises OSError or ValueError."""
        self.accepting, self.stopping = True, threading.Event()
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        *_, address = socket.getaddrinfo(self.host, self.port, family)[0]
        # The same as socket, setsockopt, bind and listen. It sets SO_REUSEADDR, so that we can
        # restart on this port at once; not on Windows, where two servers could then share it.
        self.server_socket = socket.create_server(address, family=family, backlog=1024,
                                                  dualstack_ipv6=":" in self.host)
        self.server_socket.settimeout(0.2)    # so that accept does not wait for ever
        self.host, self.port = self.server_socket.getsockname()[:2]
        self.deliver_thread = threading.Thread(target=self.deliver_messages, daemon=True)
        self.deliver_thread.start()

    def accept_connections(self):
        """Let in everybody who connects, while `accepting`: nothing else ends this."""
        in_trouble = False
        while self.accepting:
            self.show_out_the_nameless()
            try:
                client_socket, client_address = self.server_socket.accept()
                self.start_client(client_socket)
                in_trouble = False
            except socket.timeout:
                pass    # nobody came
            except (OSError, RuntimeError, MemoryError) as error:    # no sockets, threads left
                if not in_trouble:    # the first of many is enough for the log
                    logging.error(f"A client could not connect: {error}")
                in_trouble = True
                time.sleep(0.1)

    def show_out_the_nameless(self):
        """Disconnect those who have not chosen a nickname in time."""
        with self.lock:    # or one of them could choose a nickname just now
            for client in list(self.connected_clients):
                if not client.nickname and client.deadline < time.monotonic():
                    self.reply(client, f"* No nickname came within {NICKNAME_TIMEOUT} seconds.")
                    self.disconnect_client(client)

    def start_client(self, client_socket):
        """Give a new client a thread. Raises RuntimeError if the system has none left."""
        client = Client(client_socket)
        client.thread = threading.Thread(target=self.handle_client, args=(client,), daemon=True)
        with self.lock:    # or its thread could disconnect it before it is added
            try:
                client.thread.start()
            except RuntimeError:
                client_socket.close()
                raise
            self.connected_clients.add(client)

    def handle_client(self, client):
        """Read what a client sends, from nickname to last line. Its thread runs this."""
        client.set_options()
        self.reply(client, "NICK Choose a nickname.")
        batches = read_lines(client.socket)    # reads nothing yet: the loop below makes it read
        if self.rate:
            batches = limit_rate(batches, self.rate, self.stopping)
        try:
            for lines in batches:
                if not self.handle_lines(client, lines):
                    break
        except OSError as error:
            logging.info(f"{client.nickname or 'Somebody without a nickname'}: {error}")
        finally:
            self.disconnect_client(client)

    def handle_lines(self, client, lines: List[bytes]) -> bool:
        """Join, answer or broadcast, as each line asks. Return whether the client stays."""
        messages, command = [], ""
        for line in lines:
            text = clean(line)
            command = text.split(" ")[0]
            if not client.nickname and HTTP.match(line):
                command = "/quit"    # a browser: any web page could make it post here
            if command == "/quit":
                break
            elif not client.nickname:
                self.join_room(client, " ".join(text.split()))
            elif len(line) > MAX_LINE:
                self.reply(client, f"* Not sent: a message may have at most {MAX_LINE} bytes.")
            elif command == "/who":
                self.reply_who_is_online(client)
            elif command.startswith("/"):
                self.reply(client, f"* Unknown command {command}. Commands: /who, /quit")
            elif text.strip():
                messages.append(f"{client.nickname}: {text}")
        self.broadcast_message(client, "\n".join(messages))    # as one: that is faster
        for message in messages:
            logging.info(message)
        return command != "/quit" and client in self.connected_clients

    def join_room(self, client, nickname: str):
        """Let the client into the room under this nickname, or tell it why not."""
        problem = nickname_problem(nickname)
        with self.lock:    # or two could find the same nickname free at the same moment
            if not problem and nickname_key(nickname) in self.room:
                problem = f"Somebody here is called {nickname} already."
            if problem:
                self.reply(client, f"NICK {problem} Choose another.")
            elif client in self.connected_clients:    # and was not shown out meanwhile
                self.broadcast_message(client, f"* {nickname} joined")
                client.nickname = nickname
                self.room[nickname_key(nickname)] = client
                self.reply(client, f"* Welcome, {nickname}!")
                self.reply_who_is_online(client)
        if client.nickname:
            logging.info(f"{nickname} joined")

    def reply_who_is_online(self, client):
        """Post to one client the nicknames of all who are in the room."""
        with self.lock:    # or somebody could leave between the list and its posting
            nicknames = [other.nickname for other in self.room.values()]
            self.reply(client, f"* Online ({len(nicknames)}): {', '.join(nicknames)}")

    def reply(self, client, line: str):
        """Post a line to one client alone: into the outbox, from which it will be sent."""
        self.outbox.put(([client], f"{line}\n".encode()))

    def broadcast_message(self, sender, message: str):
        """Post to everybody in the room but the sender, unless the sender has left."""
        with self.lock:    # or the room could change meanwhile
            if message and sender in self.connected_clients:
                others = [client for client in self.room.values() if client is not sender]
                self.outbox.put((others, f"{message}\n".encode()))

    def deliver_messages(self):
        """Send all that is posted, and wait for no client. One thread runs this."""
        running = True
        while running:
            pieces = collections.defaultdict(list)    # what there is for each client
            # Take all that is posted by now; if nothing is, get waits. One big send is faster.
            for _ in range(max(1, self.outbox.qsize())):
                recipients, data = self.outbox.get()
                running = running and data is not None
                for client in recipients:
                    pieces[client].append(data)
            for client in pieces:
                self.deliver_to_client(client, pieces[client])

    def deliver_to_client(self, client, pieces: List[bytes]):
        """Send a client its pieces as one. What goes wrong here is this client's alone."""
        try:
            client.send_at_once(b"".join(pieces))
            if b"" not in pieces:    # nobody asked to close it
                return
        except BlockingIOError:
            self.disconnect_client(client, " (too slow)")
        except (OSError, ValueError, MemoryError):    # broken, closed, or no memory is left
            self.disconnect_client(client)
        with contextlib.suppress(OSError):    # it is closed already
            client.socket.shutdown(socket.SHUT_RDWR)    # ends its thread's recv: Linux, macOS
        client.socket.close()    # ends its thread's recv: Windows (cpython issue 91913)

    def disconnect_client(self, client, reason=""):
        """Tell the others, take it out, post its closing. Only the first call counts."""
        with self.lock:
            if client not in self.connected_clients:
                return
            if client.nickname:
                self.broadcast_message(client, f"* {client.nickname} left{reason}")
                del self.room[nickname_key(client.nickname)]
            self.connected_clients.remove(client)
            self.outbox.put(([client], b""))    # close it, after all that was posted before
        if client.nickname:
            logging.info(f"{client.nickname} left{reason}")

    def stop(self):
        """Tell everybody, close all, end the threads. Call it after accept_connections."""
        self.server_socket.close()
        with self.lock:    # from now on, disconnect_client finds nobody
            clients, self.connected_clients, self.room = self.connected_clients, set(), {}
        self.stopping.set()
        self.outbox.put((clients, b"* The server has stopped.\n"))
        self.outbox.put((clients, b""))    # close them, which ends their threads' recv
        for client in clients:
            client.thread.join()
        self.outbox.put(([], None))    # comes last, and ends deliver_messages
        self.deliver_thread.join()


################ Its tools: lines, their rate, clean text, nicknames
def read_lines(client_socket) -> Iterator[List[bytes]]:
    """Yield the lines that each recv completes, until the client closes. Raises OSError."""
    unfinished = b""    # TCP carries bytes, not messages: a recv may bring half a line, or ten
    while data := client_socket.recv(CHUNK_SIZE):
        *lines, unfinished = (unfinished + data).replace(b"\r\n", b"\n").split(b"\n")
        unfinished = unfinished[:MAX_LINE + 2]    # save memory: this is too long already
        yield lines
    if unfinished:
        yield [unfinished]


def limit_rate(batches: Iterator[List[bytes]], rate, stopping) -> Iterator[List[bytes]]:
    """Pass on `rate` lines a second, BURST seconds' worth in one go, until stopping."""
    last_time = 0.0    # when the last line passed; after a pause, taken as BURST seconds ago
    for lines in batches:
        for line in lines:
            seconds = max(1, len(line) / LONG_LINE) / rate    # that this line takes
            last_time = max(last_time, time.monotonic() - BURST) + seconds
            stopping.wait(last_time - time.monotonic())    # meanwhile no recv: the sender waits
            yield [line]


# Control characters, line and paragraph separators, and what turns the direction of text.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# What nobody sees: Default_Ignorable_Code_Point, U+FFF9-FFFB, the Braille sign without dots.
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]")
# A browser begins with GET / HTTP/1.1 and Host: or, where it encrypts, with \x16\x03.
HTTP = re.compile(rb"[A-Z]+ .*HTTP/|Host:|\x16\x03")


def clean(line: bytes) -> str:
    """Return it as text without line breaks, terminal colours or reversed writing."""
    return UNSAFE.sub("", line.decode("utf-8", "replace").replace("\t", " "))


def nickname_key(nickname: str) -> str:
    """Return what nicknames are compared by: Ada, ADA and full-width Ada (by NFKC) are one."""
    nickname = unicodedata.normalize("NFKC", INVISIBLE.sub("", nickname))
    return " ".join(nickname.casefold().split())


def nickname_problem(nickname: str) -> str:
    """Return which rule this nickname breaks, or "" if it breaks none."""
    if len(nickname) > MAX_NICKNAME:    # first: the key of a very long one takes long
        return f"A nickname has at most {MAX_NICKNAME} characters."
    key = nickname_key(nickname)
    if not key:
        return "A nickname has at least 1 visible character."
    if ":" in key:
        return "A nickname has no colon."
    if key[0] in "*/":
        return "A nickname does not begin with * or /."
    if key == "you":
        return "You is how everybody sees their own messages."
    return ""


################ The small print of sockets
class Client:
    """One connection: its socket, its thread, its nickname ("" until it is in the room)."""
    SEND_BUFFER = 256 * 1024    # bytes that the system keeps for one who reads slowly
    # Send small messages without delay. After 30 silent seconds (KEEPALIVE on macOS) ask if the
    # client is there, 3 times, 10 seconds apart. Give it 60,000 ms to confirm what was sent.
    TCP_OPTIONS = {"TCP_NODELAY": 1, "TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30,
                   "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 60_000}
    MSG_DONTWAIT = getattr(socket, "MSG_DONTWAIT", 0)    # Windows has none: ask select

    def __init__(self, client_socket):
        self.socket = client_socket
        self.nickname = ""
        self.deadline = time.monotonic() + NICKNAME_TIMEOUT

    def set_options(self):
        """Help slow readers, send small messages soon, notice clients that vanished."""
        with contextlib.suppress(OSError):    # it is closed already, as recv will tell
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.SEND_BUFFER)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in self.TCP_OPTIONS.items():
                if hasattr(socket, name):    # no system has them all
                    self.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send_at_once(self, data: bytes):
        """Send without waiting. Raises BlockingIOError if the system has no room for all."""
        for start in range(0, len(data), CHUNK_SIZE):
            piece = data[start:start + CHUNK_SIZE]
            writable = self.MSG_DONTWAIT or select.select([], [self.socket], [], 0)[1]
            if not writable or self.socket.send(piece, self.MSG_DONTWAIT) < len(piece):
                raise BlockingIOError


################ The program
def how_to_join(host, port) -> str:
    """Return where the server listens, and what to type on which computer to join it."""
    place = f"Chat server listening on {host} port {port}."
    command = f"python chat_client.py --port {port} --host"
    if host == "::1" or host.startswith("127."):
        return (f"{place}\nOnly this computer can join, with {command} {host}\n"
                "Start the server with --host 0.0.0.0 to let others in.")
    if host in ("0.0.0.0", "::"):
        host = "ADDRESS (see ipconfig, on macOS ipconfig getifaddr en0, on Linux hostname -I)"
        with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as udp_socket:
            # UDP's connect sends nothing, but shows our own address (RFC 5737: nobody's).
            udp_socket.connect(("203.0.113.1", 9))
            host = udp_socket.getsockname()[0]
    return f"{place}\nOn the other computers: {command} {host}"


def read_options():
    """Return what was typed after the program's name. Ends the program if it makes no sense."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--host", default=HOST, help="where to listen; 0.0.0.0: all networks")
    parser.add_argument("--port", type=int, default=PORT, help="0 takes any free one")
    parser.add_argument("--rate", type=int, default=RATE, help="lines a second; 0: no limit")
    parser.add_argument("--quiet", action="store_true", help="log errors only")
    args = parser.parse_args()
    if not 0 <= args.port <= 65535 or args.rate < 0:
        parser.error("a port is a number from 0 to 65535, and a rate is not negative")
    return args


def start_log(quiet):
    """Write the log in another thread: a click into a Windows console blocks printing."""
    records = queue.SimpleQueue()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S",
                        level="ERROR" if quiet else "INFO",
                        handlers=[logging.handlers.QueueHandler(records)])
    log = logging.handlers.QueueListener(records, logging.StreamHandler())
    log.start()
    return log


def main():
    """Run the server until Ctrl+C, or until it is told to end (SIGTERM)."""
    args = read_options()
    server = ChatServer(args.host, args.port, args.rate)
    try:
        server.start()
    except (OSError, ValueError) as error:
        sys.exit(f"Cannot listen on {args.host} port {args.port}: {error}. Is the port in use?")
    log = start_log(args.quiet)
    def stop_accepting(number, frame):    # Python passes these two
        server.accepting = False
    signal.signal(signal.SIGINT, stop_accepting)     # Ctrl+C
    signal.signal(signal.SIGTERM, stop_accepting)    # kill
    print(how_to_join(server.host, server.port), flush=True)
    server.accept_connections()
    server.stop()
    log.stop()
    print("The chat server has stopped.")


if __name__ == "__main__":
    main()
