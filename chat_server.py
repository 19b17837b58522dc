"""A chat server: it broadcasts each client's messages to all other clients.

Run it:   python chat_server.py                 (only this computer can join)
          python chat_server.py --host 0.0.0.0  (the whole network can join)
Join it:  python chat_client.py                 (or by hand: nc 127.0.0.1 7500)

Each client has a thread that receives (handle_client) and puts (recipients,
bytes) in a queue, the outbox. Only the delivery thread (deliver_messages)
sends, and it never waits for a client: one that is too slow is disconnected.
All receive the messages in the same order.
"""

import argparse
import collections
import contextlib
import errno
import logging.handlers
import os
import queue
import random
import re
import select
import signal
import socket
import sys
import threading
import time
import unicodedata

HOST = "127.0.0.1"  # only this computer
PORT = 7500
MAX_CONNECTIONS = 100  # from one computer (IP address)
LINES_PER_SECOND = 20  # from one computer (IP address)
BURST_SECONDS = 2  # of lines, accepted immediately after a pause
BYTES_PER_LINE = 256  # a longer line counts as up to 16
MAX_LINE_BYTES = 4096  # room for 1,024 characters or more
MAX_NICKNAME = 20  # characters
NAMES_PER_LINE = 40  # in a user list: at most about 3,300 bytes
NICKNAME_TIMEOUT = 300  # seconds
CHUNK_SIZE = 32 * 1024  # bytes, for one recv or send
CLOSE = b""  # in the outbox: close the connection
STOP = None  # in the outbox: end the delivery thread
logger = logging.getLogger(__name__)


# --- The room ---
class ChatServer:
    """A chat room. Call start, then accept_connections, then stop, once each.

    It listens on host (str) and port (int; 0: any free port). Each computer
    can send `rate` (int) lines per second; 0: no limits, for experiments.
    """

    def __init__(self, host, port, rate):
        self.host = host
        self.port = port
        self.rate = rate
        self.accepting = True  # until a signal
        self.server_socket = None
        self.delivery_thread = threading.Thread(
            target=self.deliver_messages, name="delivery", daemon=True)
        self.outbox = queue.SimpleQueue()  # of (recipients, bytes)
        self.connected_clients = set()  # all whose threads are running
        self.members = {}  # normalized nickname -> client that has joined
        self.due_times = {}  # IP address -> when its next line is due
        # A thread must hold the lock to change these three or to loop over
        # them; other threads wait. RLock: its holder can acquire it again.
        self.lock = threading.RLock()

    def start(self):
        """Listen. Raises OSError, OverflowError, TypeError or ValueError."""
        is_ipv6 = ":" in self.host
        # socket, setsockopt, bind and listen in one. It sets SO_REUSEADDR (to
        # restart on the same port), but not where servers could then share it.
        self.server_socket = socket.create_server(
            (self.host, self.port), backlog=1024, dualstack_ipv6=is_ipv6,
            family=socket.AF_INET6 if is_ipv6 else socket.AF_INET)
        self.server_socket.settimeout(0.2)  # to notice a signal in time
        self.host, self.port = self.server_socket.getsockname()[:2]
        self.delivery_thread.start()

    def accept_connections(self):
        """Accept clients while `accepting` is True. Errors do not end it."""
        error_logged = False
        while self.accepting:
            self.enforce_nickname_timeout()
            try:
                # Ignore: no client in 0.2 s, a signal (PyPy), it has left.
                with contextlib.suppress(
                        socket.timeout, BlockingIOError, ConnectionError):
                    client = ClientConnection(*self.server_socket.accept())
                    self.start_client_thread(client)
                    error_logged = False
            except (OSError, RuntimeError, MemoryError) as error:
                # Out of file descriptors, threads or memory: wait, then retry.
                if not error_logged:
                    logger.error(f"Cannot accept connections: {error}")
                error_logged = True
                time.sleep(0.1)

    def handle_signal(self, number, frame):
        """End accept_connections within 0.2 seconds. Python calls this."""
        self.accepting = False

    def enforce_nickname_timeout(self):
        """Disconnect the clients that have not joined in time."""
        # Without the lock, a client could join while this disconnects it.
        with self.lock:
            for client in self.connected_clients:
                if (not client.nickname
                        and client.nickname_deadline < time.monotonic()):
                    self.reply(client, "* No nickname was accepted in time.")
                    self.disconnect_client(client)

    def start_client_thread(self, client):
        """Start a new client's thread, or refuse it. Raises RuntimeError."""
        client.thread = threading.Thread(
            target=self.handle_client, args=(client,), daemon=True,
            name="unnamed client")
        # Without the lock, the thread could end before the client is added.
        with self.lock:
            count = sum(client.ip_address == other.ip_address
                        for other in self.connected_clients)
            if self.rate and count >= MAX_CONNECTIONS:
                self.reply(client, "* This computer has too many connections.")
                self.disconnect_client(client)
                return
            try:
                client.thread.start()
            except RuntimeError:
                client.socket.close()
                raise
            self.connected_clients.add(client)

    def handle_client(self, client):
        """Receive lines until the client leaves. Its thread runs this."""
        client.set_socket_options()
        self.reply(client, "NICK Choose a nickname.")
        batches = self.limit_rate(client) if self.rate else read_lines(client)
        try:
            for lines in batches:
                if self.process_lines(client, lines):
                    break
        except OSError as error:
            if not client.disconnected.is_set():  # otherwise expected
                logger.info(f"{client} from {client.ip_address} lost the "
                            f"connection ({error})")
        finally:
            self.disconnect_client(client)
            with self.lock:
                self.connected_clients.remove(client)

    # A token bucket that stores times in place of tokens (GCRA). Example:
    # after a pause, 42 lines arrive at 10.00 seconds. They are due at 8.00,
    # 8.05, 8.10 … The 41st, at 10.00, does not wait. The 42nd does: 10.05.
    def limit_rate(self, client):
        """Yield each received line (a list of one) when it is due."""
        for lines in read_lines(client):
            for line in lines:
                while True:
                    now = time.monotonic()
                    earliest = now - BURST_SECONDS
                    # Without the lock, two lines could use the same time.
                    with self.lock:
                        self.due_times = {
                            address: due for address, due
                            in self.due_times.items() if due > earliest}
                        due = self.due_times.get(client.ip_address, earliest)
                        if due <= now:
                            due += max(1, len(line[:MAX_LINE_BYTES])
                                       / BYTES_PER_LINE) / self.rate
                            self.due_times[client.ip_address] = due
                            break
                    # Nothing calls recv now: TCP slows the sender. Only
                    # SO_ERROR shows a reset. Random: each thread has a chance.
                    if (client.disconnected.wait(random.random() / 2)
                            or client.socket.getsockopt(
                                socket.SOL_SOCKET, socket.SO_ERROR)):
                        return
                yield [line]

    def process_lines(self, client, lines):
        """Process lines (list of bytes). Return True if the client leaves."""
        messages = []
        leaving = False
        for line in lines:
            text = sanitize(line)
            command = text.split(" ")[0]
            foreign = not client.nickname and OTHER_PROTOCOL.match(line)
            if foreign or command == "/quit" or client.disconnected.is_set():
                leaving = True
                break
            too_long = max(len(line), len(text.encode())) > MAX_LINE_BYTES
            if not client.nickname:
                self.join_room(client, TOO_LONG if too_long else text)
            elif too_long:
                self.reply(client, TOO_LONG)
            elif command == "/who":
                self.reply_user_list(client)
            elif command.rfind("/") == 0:  # "/who", but not "/home/ada"
                self.reply(client, UNKNOWN.format(command))
            elif VISIBLE.search(text):
                messages.append(f"{client.nickname}: {text}")
        self.broadcast_message(client, "\n".join(messages))
        for message in messages:
            logger.info(message)
        return leaving

    def join_room(self, client, nickname):
        """Add a client, or ask for another nickname. TOO_LONG is invalid."""
        nickname = " ".join(nickname.split())
        # Without the lock, two clients could take the same nickname.
        with self.lock:
            problem = validate_nickname(nickname, self.members)
            if problem:
                self.reply(client, f"NICK {problem} Choose another nickname.")
            elif not client.disconnected.is_set():  # by timeout, error, stop
                self.broadcast_message(client, f"* {nickname} joined")
                client.nickname = nickname
                client.thread.name = nickname
                self.members[normalize_nickname(nickname)] = client
                self.reply(client, f"* Welcome, {nickname}!")
                self.reply_user_list(client)
                logger.info(f"{nickname} joined from {client.ip_address}")

    def reply_user_list(self, client):
        """Queue the nicknames of everybody in the room for one client."""
        # Without the lock, somebody could leave before the list is queued.
        with self.lock:
            names = [member.nickname for member in self.members.values()]
            while names:
                self.reply(client, f"* Online ({len(self.members)}): "
                                   f"{', '.join(names[:NAMES_PER_LINE])}")
                del names[:NAMES_PER_LINE]

    def reply(self, client, line):
        """Queue a line (str) for one client only."""
        self.queue([client], f"{line}\n".encode())

    def broadcast_message(self, sender, message):
        """Queue a message (str) for everybody in the room but the sender."""
        # Without the lock, somebody could join or leave during the loop.
        with self.lock:
            # Discard the messages of a client that has been disconnected.
            if message and not sender.disconnected.is_set():
                recipients = [client for client in self.members.values()
                              if client is not sender]
                self.queue(recipients, f"{message}\n".encode())

    def queue(self, recipients, data):
        """Put data (bytes, CLOSE or STOP) for recipients in the outbox."""
        logger.debug("%.60r for %.60r", data, recipients)
        self.outbox.put((recipients, data))

    def deliver_messages(self):
        """Send what is in the outbox. The delivery thread runs this."""
        while True:
            # Wait for one item, then take all others: fewer sends are faster.
            items = [self.outbox.get()]
            items += [self.outbox.get() for _ in range(self.outbox.qsize())]
            chunks = collections.defaultdict(list)  # client -> its bytes
            for recipients, data in items:
                for client in recipients:
                    chunks[client].append(data)
            logger.debug("%.200r", dict(chunks))
            for client in chunks:
                self.deliver_to_client(client, chunks[client])
            if ([], STOP) in items:
                return

    def deliver_to_client(self, client, chunks):
        """Send chunks (list of bytes). Close after CLOSE or an error."""
        try:
            client.send_nowait(memoryview(b"".join(chunks)))
            if CLOSE not in chunks:
                return
        except BlockingIOError:
            self.disconnect_client(client, " (connection too slow)")
        except (OSError, ValueError, MemoryError):
            # Broken, already closed (select: ValueError), or out of memory.
            self.disconnect_client(client)
        # shutdown ends a waiting recv; on Windows, close (Python issue 91913).
        with contextlib.suppress(OSError):  # already closed
            client.socket.shutdown(socket.SHUT_RDWR)
        client.socket.close()

    def disconnect_client(self, client, reason=""):
        """Remove a client and queue CLOSE for it, if not already done."""
        # Without the lock, two threads could both announce that it left.
        with self.lock:
            if client.disconnected.is_set():
                return
            if client.nickname:
                self.broadcast_message(client, f"* {client} left{reason}")
                del self.members[normalize_nickname(client.nickname)]
                logger.info(f"{client} left{reason}")
            client.disconnected.set()  # no more broadcasts
            self.queue([client], CLOSE)  # sent last

    def stop(self):
        """Notify and disconnect all clients, and end all threads."""
        self.server_socket.close()
        # Without the lock, a client could be removed during the loop.
        with self.lock:
            clients = list(self.connected_clients)
            for client in clients:
                client.disconnected.set()  # disconnect_client then returns
        self.queue(clients, b"* The server has stopped.\n")
        self.queue(clients, CLOSE)
        for client in clients:
            client.thread.join()  # CLOSE ends its recv
        self.queue([], STOP)
        self.delivery_thread.join()


# --- Lines, text, nicknames ---
def read_lines(client):
    """Yield a list of lines (bytes) for each recv. Raises OSError."""
    # TCP is a stream of bytes: a recv can return half a line, or ten lines.
    unfinished = b""
    while data := client.socket.recv(CHUNK_SIZE):
        unfinished = (unfinished + data).replace(b"\r\n", b"\n")
        *lines, unfinished = unfinished.split(b"\n")
        # Save memory: keep just enough to detect a line that is too long.
        unfinished = unfinished[:MAX_LINE_BYTES + 2]  # one more, and a \r
        logger.debug("received %.60r: lines %.60r, unfinished %.60r",
                     data, lines, unfinished)
        yield lines
    # The end of a connection can complete a message, but not a nickname.
    if unfinished and client.nickname:
        yield [unfinished]


# The limit holds before and after decoding: an invalid byte becomes three.
TOO_LONG = f"* Not sent: a message can have at most {MAX_LINE_BYTES} bytes."
UNKNOWN = "* Unknown command: {:.40}. Available commands: /who, /quit"
# The start of HTTP (any web page can make a browser send it), RTSP, SIP, IRC,
# DICT, Redis (a star, a digit), LPD (byte 1) and TLS, and a scanner's "HELP".
OTHER_PROTOCOL = re.compile(rb"[A-Z]+ .*(HTTP|RTSP|SIP)/|Host:|CAP LS|"
                            rb"CLIENT |\*\d|\x01|\x16\x03|HELP$")
CONTROL_CHARACTERS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# Unicode's Default_Ignorable_Code_Point, U+FFF9-FFFB, and blank Braille.
INVISIBLE_CHARACTERS = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-"
    "\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff")
INVISIBLE = re.compile(f"[{INVISIBLE_CHARACTERS}]")
VISIBLE = re.compile(rf"[^\s{INVISIBLE_CHARACTERS}]")


def sanitize(line):
    """Return a line (bytes) as text that cannot control a terminal."""
    return CONTROL_CHARACTERS.sub(
        "", line.decode("utf-8", "replace").replace("\t", " "))


def normalize_nickname(nickname):
    """Return the nickname normalized for comparison: Ada equals ADA."""
    nickname = unicodedata.normalize("NFKC", INVISIBLE.sub("", nickname))
    return " ".join(nickname.casefold().split())


def validate_nickname(nickname, members):
    """Return the problem with a nickname (str), or "" if there is none."""
    if "\ufffd" in nickname:  # from sanitize
        return "A nickname must be text in UTF-8."
    if len(nickname) > MAX_NICKNAME:  # Normalizing is slow.
        return f"A nickname can have at most {MAX_NICKNAME} characters."
    normalized = normalize_nickname(nickname)
    if not normalized:
        return "A nickname needs at least 1 visible character."
    if ":" in normalized or "," in normalized:
        return "A nickname cannot contain a colon or a comma."
    if normalized[0] in "*/":
        return "A nickname cannot start with * or /."
    if normalized == "you":
        return 'The nickname "you" is reserved.'  # clients show "You: "
    if normalized in members:
        return f"The nickname {nickname} is already in use."
    return ""


# --- Sockets ---

# 256 KiB to send, for slow clients; 64 KiB received. TCP detects a dead client
# with keepalive (20 s idle, 4 probes, 10 s apart) or unanswered data (60 s).
SOCKET_OPTIONS = {
    "SO_SNDBUF": 262_144, "SO_RCVBUF": 65_536, "TCP_NODELAY": 1,
    "SO_KEEPALIVE": 1, "TCP_KEEPIDLE": 20, "TCP_KEEPALIVE": 20,
    "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 60_000}  # ms
MSG_DONTWAIT = getattr(socket, "MSG_DONTWAIT", 0)  # Windows does not have it


class ClientConnection:
    """A client's connection. The nickname is "" until the client joins."""

    def __init__(self, client_socket, address):
        self.socket = client_socket
        self.ip_address = address[0] if address else ""  # macOS: aborted
        self.thread = None
        self.nickname = ""
        self.disconnected = threading.Event()  # ends limit_rate's wait
        self.nickname_deadline = time.monotonic() + NICKNAME_TIMEOUT

    def __repr__(self):
        return self.thread.name  # in the log and in messages

    def set_socket_options(self):
        """Set the SOCKET_OPTIONS that this system has."""
        for name, value in SOCKET_OPTIONS.items():
            level = socket.SOL_SOCKET if "SO_" in name else socket.IPPROTO_TCP
            # This system does not have it, or the connection is closed.
            with contextlib.suppress(AttributeError, OSError):
                self.socket.setsockopt(level, getattr(socket, name), value)

    def send_nowait(self, data):
        """Send data (memoryview). Raises BlockingIOError, never waits."""
        while data:
            # Windows: ask select. The second list has the writable sockets.
            if not MSG_DONTWAIT and not select.select(
                    [], [self.socket], [], 0)[1]:
                raise BlockingIOError
            sent = self.socket.send(data[:CHUNK_SIZE], MSG_DONTWAIT)
            data = data[sent:]  # not a copy


# --- The program ---
def parse_args():
    """Return the command-line options, or exit if they are not valid."""
    parser = argparse.ArgumentParser(description="A chat server.")
    parser.add_argument(
        "--host", default=HOST,
        help="address to listen on (0.0.0.0: all; default: %(default)s)")
    parser.add_argument(
        "--port", type=int, default=PORT,
        help="port to listen on (0: any free port; default: %(default)s)")
    parser.add_argument("--rate", type=int, default=LINES_PER_SECOND,
                        help="lines per second from one computer (0: no "
                        "limits, for experiments; default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="log only errors")
    parser.add_argument("--trace", action="store_true", help="log each step")
    args = parser.parse_args()
    if args.rate < 0:
        parser.error("--rate must be at least 0")
    return args


class LogHandler(logging.StreamHandler):
    """Prints the log. logging calls handleError if it cannot (`| head`)."""

    def handleError(self, record):
        if sys.stdout:  # the first error
            sys.stdout = None  # otherwise Python reports it again at exit
            try:
                print("Cannot print the log.", file=sys.stderr, flush=True)
            except OSError:
                sys.stderr = None  # It is also broken.


def start_logging(quiet, trace):
    """Log in a thread (a Windows console can pause). Return a listener."""
    level = "DEBUG" if trace else "ERROR" if quiet else "INFO"
    prefix = "[%(threadName)s] %(funcName)s: " if trace else ""
    with contextlib.suppress(AttributeError):  # in IDLE
        sys.stdout.reconfigure(errors="backslashreplace")
    records = queue.SimpleQueue()
    logging.basicConfig(
        format=f"%(asctime)s {prefix}%(message)s", datefmt="%H:%M:%S",
        level=level, handlers=[logging.handlers.QueueHandler(records)],
        force=True)
    listener = logging.handlers.QueueListener(records, LogHandler(sys.stdout))
    listener.start()
    return listener


def join_instructions(host, port):
    """Return instructions (str) for joining the server at host and port."""
    command = f"python chat_client.py --port {port}"
    if host == "::1" or host.startswith("127."):
        return (f"Only this computer can join: {command} --host {host}\n"
                "To let others join, restart the server with --host 0.0.0.0")
    if host in ("0.0.0.0", "::"):
        try:
            with socket.socket(type=socket.SOCK_DGRAM) as udp_socket:
                # This sends nothing, but the system chooses our address.
                udp_socket.connect(("203.0.113.1", 9))  # reserved (RFC 5737)
                host = udp_socket.getsockname()[0]
        except OSError:
            return (f"On the other computers: {command}\n"
                    "There, enter this computer's address as the server: see "
                    "ipconfig (macOS: ipconfig getifaddr en0) or hostname -I.")
    return f"On the other computers: {command} --host {host}"


PORT_TAKEN = "The port is in use or reserved. Choose another with --port."
TAKEN_ERRORS = (errno.EADDRINUSE, errno.EACCES)
SIGNALS = ("SIGINT", "SIGTERM", "SIGBREAK")  # Ctrl+C, kill, Ctrl+Break


def main():
    """Run the server until Ctrl+C, Ctrl+Break (Windows) or SIGTERM."""
    args = parse_args()
    server = ChatServer(args.host, args.port, args.rate)
    try:
        server.start()
    except (OSError, OverflowError, TypeError, ValueError) as error:
        sys.exit(f"Cannot listen on {args.host} port {args.port}: "
                 f"{PORT_TAKEN if error.args[0] in TAKEN_ERRORS else error}")
    listener = start_logging(args.quiet, args.trace)
    handlers = {number: signal.signal(number, server.handle_signal)
                for number in signal.Signals if number.name in SIGNALS}
    try:
        print(f"Chat server listening on {server.host} port {server.port}.\n"
              f"{join_instructions(server.host, server.port)}", flush=True)
        server.accept_connections()
    finally:
        watchdog = threading.Timer(1.2, os._exit, [0])  # if the log is stuck
        with contextlib.suppress(RuntimeError):  # no thread is left
            watchdog.start()
        server.stop()
        logger.info("The chat server has stopped.")
        listener.stop()
        watchdog.cancel()
        for number, handler in handlers.items():  # IDLE keeps running.
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
