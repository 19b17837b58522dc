"""A chat client: a window, or with --text a terminal.

Run it:     python chat_client.py                                    (a small dialog asks for the rest)
            python chat_client.py --host 192.168.1.20 --nickname Ada
            python chat_client.py --text                             (no window, and no Tkinter needed)

How it is built: one connection, two faces. ChatClient knows sockets and nothing of Tk; chat_in_terminal and
ChatWindow both use it. Only the GUI thread touches a widget: the thread that receives fills a queue for it.
"""
import argparse
import contextlib
import functools
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
import unicodedata
from typing import Callable, List, Optional

HOST, PORT = "127.0.0.1", 7500
MAX_LINE = 4096           # bytes in a message, as in the server
ANSWER_TIMEOUT = 5        # seconds for the server to answer when we connect and when we join
CLOSE_TIMEOUT = 2         # seconds for the server to read our last lines
MAX_MESSAGES = 5000       # that the window keeps
TICK = 20                 # milliseconds between two looks at what has come
LINES_A_TICK = 100        # that are shown at once, so that the window answers while thousands come
COLOURS = {"You:": "#2a7fd4", "*": "#3d8b3d"}    # own messages and notices, readable on white and on black
# For a server that vanished: seconds before a probe (two names), seconds between probes, and how many.
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


################ The connection
class ChatError(OSError):
    """Something that went wrong, in words that a user understands."""


class NicknameRefused(ChatError):
    """The server wants another nickname, and says why."""


class ChatClient:
    """A connection to a chat server: connect, join, then receive and send, and close."""
    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.socket = self.receive_thread = None
        self.closing = False

    def connect(self) -> None:
        """Connect and wait for the server's first line. Raises ChatError."""
        try:
            self.socket = socket.create_connection((self.host, self.port), ANSWER_TIMEOUT)
        except (socket.gaierror, UnicodeError):
            raise ChatError(f"There is no computer called {self.host}. Is its name or address typed correctly?")
        except OSError:
            raise ChatError(f"Nobody answers at {self.host} port {self.port}. Is the server running there, "
                            "and started with --host 0.0.0.0 if it is on another computer?")
        self.file = self.socket.makefile(encoding="utf-8", errors="replace", newline="\n")
        with contextlib.suppress(OSError):    # if the server is gone already, read_line will say so
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option in KEEPALIVE.keys() & dir(socket):    # those that this platform knows
                self.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), KEEPALIVE[option])
        self.pending_line = self.read_line()

    def read_line(self) -> str:
        """Wait for the server's next line. Raises ChatError if none comes."""
        try:
            line = self.file.readline(65536)    # more than any line of our server has
        except socket.timeout:
            raise ChatError(f"{self.host} port {self.port} says nothing. Is that a chat server?")
        except OSError:
            line = ""    # broken or closed: to us it is the same
        if not line:
            raise ChatError("The server closed the connection.")
        return line.rstrip("\r\n")

    def join(self, nickname: str) -> None:
        """Ask for a nickname. Raises NicknameRefused, or ChatError if the connection is lost."""
        if self.pending_line.split(" ")[0] == "NICK":    # some servers, like smallchat, ask for no nickname
            self.send_message(" ".join(nickname.split()))
            self.pending_line = self.read_line()
            if self.pending_line.split(" ")[0] == "NICK":
                raise NicknameRefused(self.pending_line[5:])
        self.socket.settimeout(None)

    def start_receiving(self, on_line: Callable) -> None:
        """In a thread, call on_line(line) for every line that comes, and on_line(None) when the connection ends."""
        self.receive_thread = threading.Thread(target=self.receive_messages, args=(on_line,), daemon=True)
        self.receive_thread.start()

    def receive_messages(self, on_line: Callable) -> None:
        """Run in the thread that start_receiving starts."""
        try:
            while True:
                on_line(self.pending_line)
                self.pending_line = self.read_line()
        except ChatError:
            on_line(None)

    def send_message(self, text: str) -> None:
        """Send one message. Raises ChatError if it is too long or the connection is lost."""
        data = text.encode("utf-8", "replace")
        if len(data) > MAX_LINE:
            raise ChatError(f"Not sent: a message may have at most {MAX_LINE} bytes, and this one has {len(data)}.")
        try:
            self.socket.sendall(data + b"\n")
        except OSError:
            raise ChatError("Not sent: the connection to the server is lost.")

    def close(self) -> None:
        """Say that nothing more comes, wait until the server has read all and closed, then close."""
        self.closing = True    # a mere close, with something unread, sends a reset: that can destroy what was sent
        with contextlib.suppress(OSError):    # the server may have been faster
            self.socket.shutdown(socket.SHUT_WR)
        if self.receive_thread:
            self.receive_thread.join(CLOSE_TIMEOUT)
        if not self.receive_thread or not self.receive_thread.is_alive():
            self.file.close()
            self.socket.close()


def enter_room(host: str, port: int, nickname: str) -> ChatClient:
    """Return a client that is in the room. Raises NicknameRefused or another ChatError."""
    client = ChatClient(host, port)
    try:
        client.connect()
        client.join(nickname)
        return client
    except ChatError:
        if client.socket:
            client.close()
        raise


################ The terminal
def chat_in_terminal(host: str, port: int, nickname: str) -> None:
    """Print what comes and send what is typed, until Ctrl+D, Ctrl+C or /quit. Raises ChatError if it cannot join."""
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="replace")    # for what this terminal cannot show
    client = None
    try:
        while not client:
            try:
                client = enter_room(host, port, nickname or input("Nickname: "))
            except NicknameRefused as error:
                print(error, flush=True)
                nickname = ""
        client.start_receiving(functools.partial(print_line, client))
        for line in sys.stdin:
            if line.rstrip().split(" ")[0] == "/quit":
                break
            try:
                client.send_message(line.rstrip("\r\n"))
            except ChatError as error:
                print(error, flush=True)
    except (EOFError, KeyboardInterrupt):
        pass    # Ctrl+D (on Windows Ctrl+Z and Enter) and Ctrl+C are ways to leave
    if client:
        client.close()


def print_line(client: ChatClient, line: Optional[str]) -> None:
    """Print a line; if it is None, end the program, unless it is us who ended the connection."""
    if line is not None:
        print(line, flush=True)
    elif not client.closing:
        print("The connection to the server is lost.", flush=True)
        os._exit(1)    # nothing gentler ends the main thread, which waits for the keyboard


################ The window
def wrap(text: str, width: int, width_of: Callable[[str], int]) -> List[str]:
    """Cut text into rows of at most `width` pixels: after spaces, before Chinese or emoji, else anywhere."""
    rows, indent, start, cut, used = [], "", 0, 0, 0
    for position, char in enumerate(text):
        if text[position - 1:position] == " " or unicodedata.east_asian_width(char) in "WF":
            cut = position    # a row may begin here
        used += width_of(char)
        if used > width and position > start:
            end = cut if cut > start else position
            rows.append(indent + text[start:end].rstrip())
            indent, start = " " * 8, end
            used = sum(map(width_of, indent + text[start:position + 1]))
    return rows + [indent + text[start:]]


class Message:
    """A line of the chat, and when it came."""
    def __init__(self, text: str) -> None:
        self.text, self.time = text, time.strftime("%H:%M")


class JoinDialog:
    """Asks for nickname, server and port until the server lets us in, then calls on_joined(client, nickname)."""
    def __init__(self, root: "tkinter.Tk", nickname: str, host: str, port: int, on_joined: Callable) -> None:
        self.root, self.on_joined = root, on_joined
        self.window = tkinter.Toplevel(root)
        self.window.title("Join the chat")
        self.window.resizable(False, False)
        form = ttk.Frame(self.window, padding=16)
        form.grid()
        self.fields = []
        for row, (label, value) in enumerate((("Nickname", nickname), ("Server", host), ("Port", port))):
            ttk.Label(form, text=label).grid(row=row, column=0, sticky="w", padx=(0, 12), pady=4)
            self.fields.append(ttk.Entry(form, width=32, font="TkTextFont"))
            self.fields[row].insert(0, value)
            self.fields[row].grid(row=row, column=1, pady=4)
        self.status_label = ttk.Label(form, wraplength=400)
        self.status_label.grid(row=3, column=0, columnspan=2, sticky="w", pady=8)
        ttk.Button(form, text="Join", command=self.join).grid(row=4, column=1, sticky="e")
        self.window.bind("<Return>", self.join)
        self.window.bind("<KP_Enter>", self.join)
        self.window.bind("<Escape>", self.cancel)
        self.window.protocol("WM_DELETE_WINDOW", self.cancel)
        self.fields[0].focus()

    def join(self, event: object = None) -> None:
        """Try what the fields hold, and say in the dialog what is wrong with it."""
        nickname, host, port = (field.get().strip() for field in self.fields)
        self.status_label["text"] = "Connecting\u2026"
        self.window.update_idletasks()    # shows it: nothing else is shown until enter_room is done
        try:
            if port not in map(str, range(1, 65536)):
                raise ChatError("A port is a number from 1 to 65535.")
            client = enter_room(host, int(port), nickname)
        except ChatError as error:
            self.status_label["text"] = error
            self.window.deiconify()
        else:
            self.window.destroy()
            self.on_joined(client, nickname)

    def cancel(self, event: object = None) -> None:
        """Give up, and end the program if there is no chat behind the dialog."""
        self.window.destroy()
        if self.root.state() == "withdrawn":
            self.root.destroy()


class ChatWindow:
    """The window. All of this runs in the GUI thread; a queue brings what the receiving thread hears."""
    def __init__(self, host: str, port: int, nickname: str) -> None:
        self.root = tkinter.Tk()
        self.root.withdraw()    # until we are in the room
        self.root.minsize(360, 240)
        self.root.protocol("WM_DELETE_WINDOW", self.on_closing)
        if self.root.tk.call("tk", "windowingsystem") == "x11":
            ttk.Style().theme_use("clam")    # what Tk takes on Linux looks older than Linux does
        text_font = font.nametofont("TkTextFont")
        text_font.configure(size=13)    # for the projector
        self.width_of = functools.lru_cache(maxsize=None)(text_font.measure)    # to ask Tk each time takes long
        self.messages = []      # of Message
        self.rows = []          # for each row of the Listbox, the Message that it is part of
        self.unread, self.nickname = 0, nickname
        self.client = self.rewrap_timer = None
        self.incoming = queue.Queue()
        self.build_widgets()
        self.process_incoming()
        self.dialog = JoinDialog(self.root, nickname, host, port, self.start_chat)
        if nickname:
            self.dialog.window.withdraw()    # until there is something wrong
            self.root.after(0, self.dialog.join)

    def build_widgets(self) -> None:
        """Lay out the messages, which grow with the window, over the entry and the button."""
        frame = ttk.Frame(self.root, padding=8)
        frame.pack(fill="both", expand=True)
        frame.columnconfigure(0, weight=1)
        frame.rowconfigure(0, weight=1)
        scrollbar = ttk.Scrollbar(frame)
        self.message_listbox = tkinter.Listbox(frame, width=60, height=20, font="TkTextFont", activestyle="none",
                                               selectmode="extended", exportselection=False,
                                               yscrollcommand=scrollbar.set)
        scrollbar.configure(command=self.message_listbox.yview)
        self.entry_field = ttk.Entry(frame, font="TkTextFont")
        self.send_button = ttk.Button(frame)
        self.message_listbox.grid(row=0, column=0, columnspan=2, sticky="nsew")
        scrollbar.grid(row=0, column=2, sticky="ns")
        self.entry_field.grid(row=1, column=0, sticky="ew", pady=(8, 0))
        self.send_button.grid(row=1, column=1, columnspan=2, padx=(8, 0), pady=(8, 0))
        self.entry_field.bind("<Return>", self.send_message)
        self.entry_field.bind("<KP_Enter>", self.send_message)
        self.message_listbox.bind("<<Copy>>", self.copy_messages)    # Ctrl+C, on macOS Cmd+C
        self.message_listbox.bind("<Configure>", self.on_resize)
        self.width = self.message_listbox.winfo_reqwidth()

    def start_chat(self, client: ChatClient, nickname: str) -> None:
        """We are in the room: receive, and show the window."""
        self.client, self.nickname = client, nickname
        client.start_receiving(self.incoming.put)    # a thread may fill a queue, but not touch a widget
        self.send_button.configure(text="Send", command=self.send_message)
        self.root.deiconify()
        self.entry_field.focus()

    def process_incoming(self) -> None:
        """Show what has come, again and again, but never so much at once that the window stands still."""
        self.timer = self.root.after(TICK, self.process_incoming)
        lines = []
        while len(lines) < LINES_A_TICK and not self.incoming.empty():
            lines.append(self.incoming.get())
        if None in lines:
            self.client.close()
            self.send_button.configure(text="Reconnect", command=self.reconnect)
            lines[-1] = "* The connection to the server is lost."
        self.show(lines)
        self.following = self.message_listbox.yview()[1] == 1    # the newest message is in sight
        self.unread += sum(not line.startswith("* ") for line in lines)
        if self.root.focus_displayof():
            self.unread = 0
        title = f"({self.unread}) Chat - {self.nickname}" if self.unread else f"Chat - {self.nickname}"
        if title != self.root.title():
            self.root.title(title)

    def show(self, lines: List[str]) -> None:
        """Add lines at the end, and drop the oldest beyond MAX_MESSAGES. Stay at the end if it was in sight."""
        following = self.message_listbox.yview()[1] == 1
        messages = [Message(line) for line in lines]
        self.messages += messages
        self.insert_rows(messages)
        if len(self.messages) > MAX_MESSAGES:
            del self.messages[:-MAX_MESSAGES]
            count = self.rows.index(self.messages[0])
            del self.rows[:count]
            self.message_listbox.delete(0, count - 1)
        if following:
            self.message_listbox.see("end")

    def insert_rows(self, messages: List[Message]) -> None:
        """Wrap messages and add their rows to the Listbox, own messages and notices in their colours."""
        for message in messages:
            rows = wrap(f"{message.time}  {message.text}", self.width - 12, self.width_of)
            self.message_listbox.insert("end", *rows)
            colour = COLOURS.get(message.text.partition(" ")[0])
            if colour:
                for index in range(len(self.rows), len(self.rows) + len(rows)):
                    self.message_listbox.itemconfigure(index, foreground=colour)
            self.rows += [message] * len(rows)

    def on_resize(self, event: "tkinter.Event") -> None:
        """Keep the newest message in sight, and wrap again when the width has stayed the same for a moment."""
        if self.following:
            self.message_listbox.see("end")
        if event.width != self.width:
            self.width = event.width
            if self.rewrap_timer:
                self.root.after_cancel(self.rewrap_timer)
            self.rewrap_timer = self.root.after(100, self.rewrap)

    def rewrap(self) -> None:
        """Wrap all messages to the new width. What was on top stays on top, unless the end was in sight."""
        top = self.rows[self.message_listbox.nearest(0)] if self.rows else None
        self.rows.clear()
        self.message_listbox.delete(0, "end")
        self.insert_rows(self.messages)
        self.message_listbox.yview("end" if self.following or not top else self.rows.index(top))

    def send_message(self, event: object = None) -> None:
        """Send what is in the entry, a message for each line. What cannot be sent stays there."""
        lines = [line for line in self.entry_field.get().splitlines() if line.strip()]
        try:
            while lines:
                if not self.client.closing and not select.select([], [self.client.socket], [], 0)[1]:
                    raise ChatError("Not sent: the server does not listen. Try again.")    # rather than wait for it
                self.client.send_message(lines[0])
                if not lines[0].startswith("/"):
                    self.show([f"You: {lines[0]}"])
                if lines.pop(0).split(" ")[0] == "/quit":
                    return self.on_closing()
        except ChatError as error:
            self.show([f"* {error}"])
        self.entry_field.delete(0, "end")
        self.entry_field.insert(0, "\n".join(lines))
        self.message_listbox.see("end")

    def copy_messages(self, event: object) -> None:
        """Copy the messages that the selected rows are part of, whole and without the wrapping."""
        messages = dict.fromkeys(self.rows[index] for index in self.message_listbox.curselection())
        if messages:
            self.root.clipboard_clear()
            self.root.clipboard_append("\n".join(message.text for message in messages))

    def reconnect(self) -> None:
        """Ask again, unless the dialog is there already, with what it held before."""
        if not self.dialog.window.winfo_exists():
            self.dialog = JoinDialog(self.root, self.nickname, self.client.host, self.client.port, self.start_chat)

    def on_closing(self) -> None:
        """Close the window at once, then the connection, so that the last message arrives."""
        self.root.after_cancel(self.timer)
        self.root.destroy()
        if self.client:
            self.client.close()


################ The program
def open_window(host: str, port: int, nickname: str) -> None:
    """Import Tkinter, which only the window needs, and run the window."""
    global tkinter, font, ttk
    try:
        import tkinter
        from tkinter import font, ttk
        window = ChatWindow(host, port, nickname)
    except ImportError:
        sys.exit("This Python has no Tkinter, which the window needs (Debian, Ubuntu: sudo apt install python3-tk). "
                 "The terminal does not need it: python chat_client.py --text")
    except tkinter.TclError as error:
        sys.exit(f"There is no screen for a window: {error}. "
                 "The terminal does not need one: python chat_client.py --text")
    signal.signal(signal.SIGINT, lambda *_: window.root.after(0, window.on_closing))    # Ctrl+C in the terminal
    window.root.mainloop()


def main() -> None:
    """Read the options, and chat in a window or in the terminal."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--host", default=HOST, help="name or address of the computer that the server runs on")
    parser.add_argument("--port", type=int, default=PORT, help="port that the server listens on")
    parser.add_argument("--nickname", default="", help="what to be called; without it you are asked")
    parser.add_argument("--text", action="store_true", help="chat in the terminal, without a window")
    args = parser.parse_args()
    if not 1 <= args.port <= 65535:
        parser.error("a port is a number from 1 to 65535")
    try:
        (chat_in_terminal if args.text else open_window)(args.host, args.port, args.nickname)
    except ChatError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        pass    # Ctrl+C once more, while the connection closes


if __name__ == "__main__":
    main()
