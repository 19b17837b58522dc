"""A chat server: every line that one client sends goes to all the others.

Run it:     python chat_server.py                  (this computer alone can join)
            python chat_server.py --host 0.0.0.0   (everybody in the network can)
Join it:    python chat_client.py                  (or by hand: nc 127.0.0.1 7500)

How it is built: many threads read, one thread delivers.
    accept_connections -> a thread per client: handle_client reads lines and decides what each one is
        -> broadcast_message, reply -> outbox, a queue of (recipients, bytes) -> deliver_messages sends
"""
import argparse
import contextlib
import logging.handlers
import queue
import re
import select
import socket
import sys
import threading
import time
import unicodedata
from typing import Iterable, Iterator, List

HOST, PORT = "127.0.0.1", 7500
RATE, BURST = 20, 2                   # lines a second from one client, and for how many seconds at once
MAX_NICKNAME, MAX_LINE = 20, 4096     # characters; bytes: at least 1,024 characters in any alphabet
NICKNAME_TIMEOUT = 60                 # seconds
READ_SIZE = SEND_SIZE = 32 * 1024     # bytes for one recv or send
SEND_BUFFER = 256 * 1024              # bytes that the kernel keeps for a client that reads slowly
# For a client that vanished: seconds before a probe (two names), between probes, how many; milliseconds unconfirmed.
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 60000}
MSG_DONTWAIT = getattr(socket, "MSG_DONTWAIT", 0)    # Windows has none
END_OF_OUTBOX = ((), b"")                            # the last thing that stop() posts
# Control characters, line and paragraph separators, and what turns the direction of text around:
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# What nobody sees: Unicode's Default_Ignorable_Code_Point, and the Braille sign without dots:
INVISIBLE = re.compile("[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
                       "\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff]")


################ Bytes, lines, text
def read_lines(client_socket: socket.socket) -> Iterator[List[bytes]]:
    """Yield the lines that each read completes, until the client closes. Raises OSError if the connection breaks.

    TCP carries bytes, not messages: one recv may bring half a line, or ten and a half. What has no line
    ending yet waits for the next read, but of a line that is too long only the start is kept.
    """
    unfinished = b""
    while data := client_socket.recv(READ_SIZE):
        *lines, unfinished = (unfinished + data).replace(b"\r\n", b"\n").split(b"\n")
        unfinished = unfinished[:MAX_LINE + 2]    # so it stays too long, even if a \r at its end is dropped
        yield lines
    if unfinished:
        yield [unfinished]


def limit_rate(batches: Iterable[List[bytes]], rate: int) -> Iterator[List[bytes]]:
    """Pass on `rate` lines a second, and BURST seconds' worth at once."""
    turn = 0.0    # the time from which the next line may pass
    for lines in batches:
        for line in lines:
            turn = max(turn + 1 / rate, time.monotonic() - BURST)
            time.sleep(max(0, turn - time.monotonic()))    # nobody reads meanwhile, so TCP makes the sender wait
            yield [line]


def clean(line: bytes) -> str:
    """Return the line as text that cannot fake another line, colour a terminal or turn text around."""
    return UNSAFE.sub("", line.decode("utf-8", "replace").replace("\t", " "))


def nickname_key(nickname: str) -> str:
    """Return what nicknames are compared by: Ada, ADA, full-width Ada and Ada with an invisible joiner are one."""
    return " ".join(unicodedata.normalize("NFKC", INVISIBLE.sub("", nickname)).casefold().split())


def nickname_problem(nickname: str, taken: List[str]) -> str:
    """Return in plain words why this nickname cannot be had, or "" if it can."""
    key = nickname_key(nickname)
    if not key or len(nickname) > MAX_NICKNAME or ":" in key or key[0] in "*/" or key == "you":
        return f"A nickname has 1 to {MAX_NICKNAME} characters, no colon, no * or / in front, and is not You."
    if key in map(nickname_key, taken):
        return f"Somebody here is called {nickname} already."
    return ""


################ The server
class Client:
    """One connection: its socket, its address and, from when it is in the room, its nickname."""
    def __init__(self, client_socket: socket.socket, client_address: tuple) -> None:
        self.socket, self.nickname = client_socket, ""
        self.name = client_address[0]    # what the log calls it
        self.deadline = time.monotonic() + NICKNAME_TIMEOUT
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)    # else a small message waits 40 ms
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in KEEPALIVE.keys() & dir(socket):    # those that this platform knows
            self.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), KEEPALIVE[option])

    def send_at_once(self, data: bytes) -> None:
        """Send without ever waiting. Raises BlockingIOError if the kernel has no room for all of the data."""
        for start in range(0, len(data), SEND_SIZE):
            piece = data[start:start + SEND_SIZE]
            writable = MSG_DONTWAIT or select.select([], [self.socket], [], 0)[1]
            if not writable or self.socket.send(piece, MSG_DONTWAIT) < len(piece):
                raise BlockingIOError


class ChatServer:
    """A chat room: start() opens it, stop() closes it. Port 0 takes any free port; `port` then says which."""
    def __init__(self, host: str, port: int, rate: int = RATE) -> None:
        self.host, self.port, self.rate = host, port, rate
        self.connected_clients = {}          # Client -> its thread; whoever has a nickname is in the room
        self.lock = threading.RLock()        # is held while connected_clients changes or is looked through
        self.outbox = queue.SimpleQueue()    # (recipients, bytes); b"" closes a connection, as in recv
        self.stopping = False

    def start(self) -> None:
        """Listen, and start the thread that delivers. Raises OSError or UnicodeError if it cannot listen there."""
        # socket, setsockopt, bind and listen in one, and it knows that SO_REUSEADDR frees the port of a
        # stopped server on Linux and macOS, but lets two servers share one port on Windows.
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        address = socket.getaddrinfo(self.host, self.port, family)[0][4]
        self.server_socket = socket.create_server(address, family=family, backlog=1024)
        self.server_socket.settimeout(0.2)    # seconds; Ctrl+C ends no accept on Windows (cpython issue 85609)
        self.port = self.server_socket.getsockname()[1]
        self.deliver_thread = threading.Thread(target=self.deliver_messages, daemon=True)
        self.deliver_thread.start()
        threading.Thread().start()    # Python 3.8 opens a file when a first thread ends: now, while it can

    def accept_connections(self) -> None:
        """Start a thread for everybody who connects, until Ctrl+C or `stopping`: nothing else ends this."""
        in_trouble = False
        while not self.stopping:
            for client in list(self.connected_clients):
                if not client.nickname and client.deadline < time.monotonic():
                    self.reply(client, f"* No nickname came within {NICKNAME_TIMEOUT} seconds.")
                    self.disconnect_client(client)
            client = None
            try:
                client = Client(*self.server_socket.accept())
                thread = threading.Thread(target=self.handle_client, args=(client,), daemon=True)
                with self.lock:
                    self.connected_clients[client] = thread
                thread.start()
                in_trouble = False
            except socket.timeout:
                continue
            except (OSError, RuntimeError) as error:    # out of file descriptors, or out of threads
                if not in_trouble:
                    logging.error("A client could not connect: %s", error)
                in_trouble = True
                self.disconnect_client(client)
                time.sleep(0.1)

    def handle_client(self, client: Client) -> None:
        """Read what one client sends, from its nickname to its last line. Every client's thread runs this."""
        try:
            client.socket.sendall(b"NICK Choose a nickname.\n")
            batches = read_lines(client.socket)
            if self.rate:
                batches = limit_rate(batches, self.rate)
            for lines in batches:
                self.handle_lines(client, lines)
                if client not in self.connected_clients:
                    break
        except OSError as error:
            logging.info("%s: %s", client.name, error)
        finally:
            self.disconnect_client(client)

    def handle_lines(self, client: Client, lines: List[bytes]) -> None:
        """Take each line for what it is: a nickname, a command or a message. The messages go out together."""
        messages, command = [], ""
        for line in lines:
            text = clean(line)
            command = text.partition(" ")[0]
            if command == "/quit":
                break
            elif not client.nickname:
                self.join_room(client, " ".join(text.split()))
            elif len(line) > MAX_LINE:
                self.reply(client, f"* Not sent: a message may have at most {MAX_LINE} bytes.")
            elif command == "/who":
                self.reply(client, self.online_line())
            elif command.startswith("/"):
                self.reply(client, f"* Unknown command {command}. Commands: /who, /quit")
            elif text.strip():
                messages.append(f"{client.nickname}: {text}")
        self.broadcast_message(client, *messages)
        for message in messages:
            logging.info("%s", message)
        if command == "/quit":
            self.disconnect_client(client)

    def join_room(self, client: Client, nickname: str) -> None:
        """Let the client into the room under this nickname, or tell it why not."""
        with self.lock:    # or two could find the same nickname free at the same moment
            problem = nickname_problem(nickname, [other.nickname for other in self.connected_clients])
            if not problem:
                self.broadcast_message(client, f"* {nickname} joined")
                client.nickname = client.name = nickname
                self.reply(client, f"* Welcome, {nickname}!", self.online_line())
        if problem:
            client.socket.sendall(f"NICK {problem} Choose another.\n".encode())
        else:
            logging.info("%s joined", nickname)

    def online_line(self) -> str:
        """Return the line that tells who is in the room."""
        with self.lock:
            nicknames = [client.nickname for client in self.connected_clients if client.nickname]
        return f"* Online ({len(nicknames)}): {', '.join(nicknames)}"

    def reply(self, client: Client, *lines: str) -> None:
        """Post lines to one client alone."""
        self.outbox.put(([client], ("\n".join(lines) + "\n").encode()))

    def broadcast_message(self, sender: Client, *lines: str) -> None:
        """Post lines to everybody in the room but the sender. Whoever has left is not heard any more."""
        with self.lock:    # also so that everybody hears everything in one order
            if lines and sender in self.connected_clients:
                others = [client for client in self.connected_clients if client.nickname and client is not sender]
                self.outbox.put((others, ("\n".join(lines) + "\n").encode()))

    def deliver_messages(self) -> None:
        """Send what the outbox holds, to each client in one piece, and wait for none of them."""
        posted = []
        while END_OF_OUTBOX not in posted:
            posted = [self.outbox.get() for _ in range(max(1, self.outbox.qsize()))]
            pieces = {}
            for recipients, data in posted:
                for client in recipients:
                    pieces.setdefault(client, []).append(data)
            for client in pieces:
                try:
                    client.send_at_once(b"".join(pieces[client]))
                except BlockingIOError:
                    self.disconnect_client(client, " (too slow)")
                    pieces[client].append(b"")    # nothing may follow half a line
                except (OSError, ValueError):
                    pass    # the connection is broken, as its own thread finds out in recv, or closed already
                if b"" in pieces[client]:
                    with contextlib.suppress(OSError):    # the client may have been faster
                        client.socket.shutdown(socket.SHUT_RDWR)    # wakes recv on Linux and macOS,
                    client.socket.close()                           # and this on Windows (cpython issue 91913)

    def disconnect_client(self, client: Client, reason: str = "") -> None:
        """Take a client out, tell the others, close the connection. The first call does it; more do no harm."""
        with self.lock:
            if client not in self.connected_clients:
                return
            if client.nickname:
                self.broadcast_message(client, f"* {client.nickname} left{reason}")
            del self.connected_clients[client]
            self.outbox.put(([client], b""))    # after all that was posted for it before
        logging.info("%s left%s", client.name, reason)

    def stop(self) -> None:
        """Tell everybody, close all connections and end the threads; accept_connections has ended before."""
        self.stopping = True
        self.server_socket.close()
        with self.lock:
            clients, self.connected_clients = self.connected_clients, {}
        self.outbox.put((clients, b"* The server has stopped.\n"))
        self.outbox.put((clients, b""))
        for thread in filter(threading.Thread.is_alive, clients.values()):
            thread.join()
        self.outbox.put(END_OF_OUTBOX)
        self.deliver_thread.join()


################ The program
def how_to_join(host: str, port: int) -> str:
    """Return where the server listens, and what to type on which computer to join it."""
    place, command = f"Chat server listening on {host} port {port}.", f"python chat_client.py --port {port}"
    if host in (HOST, "localhost", "::1"):
        return f"{place}\nOnly this computer can join, with {command}\nStart it with --host 0.0.0.0 to let others in."
    if host in ("0.0.0.0", "::"):
        family, far_away = (socket.AF_INET, "203.0.113.1") if host == "0.0.0.0" else (socket.AF_INET6, "2001:db8::1")
        host = "ADDRESS (which ipconfig shows on Windows, ipconfig getifaddr en0 on macOS, hostname -I on Linux)"
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far_away, 9))    # sends nothing: with UDP it only looks up the way there (RFC 5737, 3849)
            host = probe.getsockname()[0]
    return f"{place}\nOn the other computers: {command} --host {host}"


def main() -> None:
    """Read the options, and run the server until Ctrl+C."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--host", default=HOST, help="address to listen on; 0.0.0.0 lets the whole network in")
    parser.add_argument("--port", type=int, default=PORT, help="port to listen on; 0 takes any free one")
    parser.add_argument("--rate", type=int, default=RATE, help="lines a second that a client may send; 0: no limit")
    parser.add_argument("--quiet", action="store_true", help="log errors only, not who joins, says and leaves")
    args = parser.parse_args()
    if not 0 <= args.port <= 65535 or args.rate < 0:
        parser.error("a port is a number from 0 to 65535, and a rate is not negative")
    records = queue.SimpleQueue()    # a thread of its own writes the log: a paused console must not stop the room
    logging.basicConfig(level=logging.WARNING if args.quiet else logging.INFO, datefmt="%H:%M:%S",
                        format="%(asctime)s %(message)s", handlers=[logging.handlers.QueueHandler(records)])
    listener = logging.handlers.QueueListener(records, logging.StreamHandler())
    server = ChatServer(args.host, args.port, args.rate)
    try:
        server.start()
    except (OSError, UnicodeError) as error:
        sys.exit(f"Cannot listen on {args.host} port {args.port}: {error}. Is the port in use, or the host wrong?")
    listener.start()
    try:
        print(how_to_join(args.host, server.port), flush=True)
        server.accept_connections()
    except KeyboardInterrupt:
        server.stop()
        print("The chat server has stopped.")
    listener.stop()


if __name__ == "__main__":
    main()
