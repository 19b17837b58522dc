"""A chat client: a window, or with --text a terminal.

Run it:     python chat_client.py                       (a small dialog asks for the rest)
            python chat_client.py --host 192.168.1.20 --nickname Ada
            python chat_client.py --text                (no window, and no Tkinter needed)

One connection, two faces: ChatClient knows sockets and nothing of Tk. A thread puts what comes
into a queue, from which another may take it. chat_in_terminal prints what it takes; ChatWindow
looks into the queue fifty times a second and shows it: the main thread alone, here called the
GUI thread, may touch what is in a window.
"""
import argparse
import contextlib
import functools
import os
import queue
import re
import select
import signal
import socket
import sys
import threading
import time
try:
    import tkinter
    from tkinter import font, ttk
except ImportError:
    tkinter = None    # the terminal needs none

HOST, PORT = "127.0.0.1", 7500
MAX_LINE = 4096           # bytes in a message without its line ending, as in the server
JOIN_TIMEOUT = 10         # seconds for connecting and for the server's answers, all together
CLOSE_TIMEOUT = 2         # seconds for the server to read what was sent last
TICK = 20                 # milliseconds between two looks into the queue
LINES_A_TICK = 100        # at most, so that the window answers while thousands come
MAX_MESSAGES = 5000       # that the window keeps,
MAX_ROWS = 10_000         # and how many rows they may fill: long ones fill several


################ The connection
class ChatError(Exception):
    """Something that went wrong, in words that a user understands."""


class NicknameRefused(ChatError):
    """The server wants another nickname, and says why."""


class ChatClient:
    """A connection to a chat server: start, take what comes from `incoming`, send, close.

    `incoming` gets a line when we are in the room, then all others, and last the ChatError
    that ended it, put there as an object: nobody can catch what another thread raises.
    """
    # Send small messages at once; ask a server that is silent for 30 seconds (KEEPIDLE, on
    # macOS KEEPALIVE) if it is there, 3 times, 10 seconds apart; let a message be unconfirmed
    # for at most 60,000 ms.
    TCP_OPTIONS = {"TCP_NODELAY": 1, "TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30,
                   "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 60_000}
    # Line endings, tabs, and what could colour a terminal or turn text around.
    UNSAFE = "[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"

    def __init__(self, host, port, nickname):
        self.host, self.port, self.nickname = host, str(port), nickname
        self.incoming = queue.Queue()
        self.socket = None
        self.closing = False

    def start(self):
        """Connect and receive in a thread. Within JOIN_TIMEOUT, `incoming` has an answer."""
        self.thread = threading.Thread(target=self.receive_messages)
        self.timer = threading.Timer(JOIN_TIMEOUT, self.give_up)
        for thread in (self.timer, self.thread):
            thread.daemon = True    # the program may end without waiting for it
            thread.start()

    def receive_messages(self):
        """Put what comes into the queue. The thread that start() starts runs this."""
        try:
            self.connect()
            with self.socket, self.socket.makefile("rb") as self.file:
                if self.closing:    # somebody gave up while we connected
                    return
                line = self.join()
                self.timer.cancel()
                while True:    # until read_line raises a ChatError
                    self.incoming.put(line)
                    line = self.read_line()
        except ChatError as error:
            self.incoming.put(error)
        self.timer.cancel()

    def connect(self):
        """Connect, and prepare to notice a server that vanishes. Raises ChatError."""
        if not self.host:
            raise ChatError("The server is empty: type its name or address.")
        if not self.port.isdecimal() or not 1 <= int(self.port) <= 65535:
            raise ChatError("A port is a number from 1 to 65535.")
        address = self.host, int(self.port)
        try:    # a name may have two addresses: each gets half of the time
            self.socket = socket.create_connection(address, JOIN_TIMEOUT / 2)
        except (socket.gaierror, UnicodeError):
            raise ChatError(f"There is no computer called {self.host}. Is it typed correctly?")
        except OSError:
            raise ChatError(f"Nobody answers at {self.host} port {self.port}. Is the server "
                            "running there, and started with --host 0.0.0.0 if it is on "
                            "another computer?")
        self.socket.settimeout(None)    # from now on, reading may wait for ever
        with contextlib.suppress(OSError):    # lost already, as read_line will tell
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in self.TCP_OPTIONS.items():
                if hasattr(socket, name):
                    self.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def join(self) -> str:
        """Ask for the nickname, return the first line from the room. Raises NicknameRefused."""
        line = self.read_line()
        if line.startswith("NICK"):    # some other servers ask for no nickname
            self.send_message(" ".join(self.nickname.split()))
            line = self.read_line()
            if line.startswith("NICK"):
                raise NicknameRefused(line[5:])    # the reason after "NICK "
        return line

    def read_line(self) -> str:
        """Wait for the next line. Raises ChatError if the connection ends."""
        try:
            line = self.file.readline(65536)    # more bytes than any line of our server has
        except OSError:
            line = b""    # broken: to us that is the same as closed
        if not line:
            raise ChatError("The connection to the server is lost.")
        return re.sub(self.UNSAFE, "", line.decode("utf-8", "replace"))

    def send_message(self, text: str, wait=True):
        """Send one message. Raises ChatError if it cannot be sent (not now: wait=False)."""
        data = text.encode("utf-8", "replace")
        if len(data) > MAX_LINE:
            raise ChatError(f"Not sent: a message may have at most {MAX_LINE} bytes, "
                            f"and this one has {len(data)}.")
        try:
            # The second list of select's answer: the sockets that have room now.
            if not wait and not select.select([], [self.socket], [], 0)[1]:
                raise ChatError("Not sent: the server does not listen. Try again.")
            self.socket.sendall(data + b"\n")
        except (OSError, ValueError):
            raise ChatError("Not sent: the connection to the server is lost.")

    def give_up(self):
        """End an attempt to join that takes too long. The timer calls this."""
        self.incoming.put(ChatError(f"{self.host} port {self.port} says nothing. "
                                    "Is that a chat server?"))
        self.cancel()

    def cancel(self, how=socket.SHUT_RDWR):
        """End an attempt, a chat, or our half of it. Wakes who reads, and waits for nothing."""
        self.closing = True
        with contextlib.suppress(OSError, AttributeError):    # closed, or none yet
            self.socket.shutdown(how)

    def close(self, timeout=None):
        """Say that we send no more, and wait until the server has read all, or for the timeout.

        A mere close, while we have something unread, sends a reset: that can destroy what was
        sent last.
        """
        self.cancel(socket.SHUT_WR)
        if self.socket:
            self.thread.join(timeout)    # in seconds; without a socket there may be no thread


################ The terminal
def chat_in_terminal(host, port, nickname):
    """Print what comes, send what is typed until Ctrl+D, Ctrl+C or /quit. Raises ChatError."""
    if not sys.stdin or not sys.stdout:
        raise ChatError("--text needs something to read from and something to print to.")
    for stream in (sys.stdin, sys.stdout):    # "?" for what this terminal cannot show
        stream.reconfigure(errors="replace", line_buffering=True)
    client, first_line = join_in_terminal(host, port, nickname)
    printer = threading.Thread(target=print_lines, args=(client, first_line), daemon=True)
    printer.start()
    with contextlib.suppress(KeyboardInterrupt):    # Ctrl+C is a way to leave
        for line in sys.stdin:
            line = line.rstrip()
            if line.split(" ")[0] == "/quit":
                break
            try:
                client.send_message(line)
            except ChatError as error:
                print(error)
    # A poem from a pipe takes as long as the server's flood control makes it.
    client.close(CLOSE_TIMEOUT if sys.stdin.isatty() else None)
    printer.join(CLOSE_TIMEOUT)


def join_in_terminal(host, port, nickname):
    """Return a client that is in the room, and the first line from there. Raises ChatError."""
    while True:
        client = ChatClient(host, port, nickname or input("Nickname: "))
        client.start()
        answer = client.incoming.get()
        if not isinstance(answer, ChatError):
            return client, answer
        if not isinstance(answer, NicknameRefused) or not sys.stdin.isatty():
            raise answer    # what comes next in a pipe is no nickname
        print(answer)
        nickname = ""


def print_lines(client, line):
    """Print what comes. End the program with the connection, unless it is us who ended it."""
    with contextlib.suppress(OSError):    # nobody reads it any more, or the disk is full
        while not isinstance(line, ChatError):
            print(line)
            line = client.incoming.get()
        if client.closing:
            return
        print(line)    # the error
    os._exit(1)    # nothing gentler ends the main thread, which waits for the keyboard


################ The window
class ChatWindow:
    """The window, a method for what happens: joined, lines came (or the end), send, close."""
    def __init__(self, host, port, nickname):
        self.root = tkinter.Tk(className="Chat")
        self.root.withdraw()    # until we are in the room
        self.client = ChatClient(host, port, nickname)    # never started: nothing comes from it
        self.connected, self.unread = False, 0
        self.build_widgets()
        self.dialog = JoinDialog(self, nickname, host, port)
        if nickname:
            self.dialog.join()
        self.root.after(150, self.dialog.show)    # does nothing if we are in the room by then
        self.process_incoming()

    def start_chat(self, client, first_line):
        """We are in the room: show the window."""
        self.client, self.connected = client, True
        self.message_list.add([first_line])
        self.send_button.configure(text="Send", command=self.send_message)
        self.root.deiconify()
        self.entry_field.focus()

    def process_incoming(self):
        """Show what has come, but not so much that the window stands still. Look again."""
        try:
            self.dialog.look()
            count = min(LINES_A_TICK, self.client.incoming.qsize())
            lines = [self.client.incoming.get() for _ in range(count)]
            if lines and isinstance(lines[-1], ChatError):
                lines[-1] = f"* {lines[-1]}"
                self.connected = False
                self.send_button.configure(text="Reconnect", command=self.dialog.show)
            self.message_list.add(lines)    # or none: it also notes whether one has scrolled
            self.unread += sum(not line.startswith("* ") for line in lines)
            self.update_title()
        finally:    # whatever happened, and after the work, so that Tk can redraw in between
            self.root.after(TICK, self.process_incoming)

    def update_title(self):
        """Show a new title: none is unread if the window has the focus and shows the newest."""
        if self.root.focus_displayof() and self.message_list.following:
            self.unread = 0
        title = f"Chat - {self.client.nickname}"
        if self.unread:
            title = f"({self.unread}) {title}"
        if not self.connected:
            title += " (connection lost)"
        if title != self.root.title():
            self.root.title(title)

    def send_message(self, event=None):
        """Send what is in the entry, pasted lines one by one. What cannot be sent stays."""
        lines = [line for line in self.entry_field.get().splitlines() if line.strip()]
        try:
            for line in list(lines):    # a copy, for what is sent goes
                if line.split(" ")[0] == "/quit":
                    self.on_closing()
                    return
                self.client.send_message(line, wait=False)
                if not line.startswith("/"):
                    self.message_list.add([f"You: {line}"])
                del lines[0]
        except ChatError as error:
            self.message_list.add([f"* {error}"])
        self.entry_field.delete(0, "end")
        self.entry_field.insert(0, "\n".join(lines))
        self.entry_field.focus()
        self.message_listbox.see("end")

    def type_on(self, event):
        """What is typed while the messages have the keyboard goes to the entry."""
        command = sys.platform == "darwin" and event.state & 8    # bit 3: the Cmd key
        if event.char and event.char.isprintable() and not command:
            self.entry_field.focus()
            self.entry_field.insert("insert", event.char)
            return "break"    # or the Listbox would take the key, too

    def on_closing(self):
        """Close the window at once, then the connection, so that the last message arrives."""
        self.root.destroy()
        self.client.close(CLOSE_TIMEOUT)

    def build_widgets(self):
        """Pack the entry and the button first, so that the messages get the rest."""
        self.root.minsize(360, 240)
        self.root.protocol("WM_DELETE_WINDOW", self.on_closing)
        set_habits(self.root)
        bottom = ttk.Frame(self.root, padding=8)
        self.entry_field = ttk.Entry(bottom)
        self.send_button = ttk.Button(bottom)
        self.message_listbox = tkinter.Listbox(
            self.root, width=60, height=20, font="TkTextFont", activestyle="none",
            selectmode="extended", exportselection=False)
        self.message_list = MessageList(self.message_listbox)
        scrollbar = ttk.Scrollbar(self.root, command=self.message_listbox.yview)
        self.message_listbox["yscrollcommand"] = scrollbar.set
        bottom.pack(side="bottom", fill="x")
        scrollbar.pack(side="right", fill="y")
        self.message_listbox.pack(fill="both", expand=True)
        self.send_button.pack(side="right", padx=(8, 0))
        self.entry_field.pack(fill="both", expand=True)
        self.entry_field.bind("<<Return>>", self.send_message)    # our own name: see set_habits
        turn_page = self.message_listbox.yview_scroll
        self.entry_field.bind("<Prior>", lambda event: turn_page(-1, "pages"))    # Page Up
        self.entry_field.bind("<Next>", lambda event: turn_page(1, "pages"))      # Page Down
        self.message_listbox.bind("<Key>", self.type_on)


class JoinDialog:
    """Asks for nickname, server and port until a client is in the room."""
    def __init__(self, chat_window, nickname, host, port):
        self.chat_window = chat_window
        self.client = None    # while it connects
        self.build_widgets({"Nickname": nickname, "Server": host, "Port": port})

    def join(self, event=None):
        """Try what the fields hold, unless a try is running."""
        if not self.client:
            nickname, host, port = [field.get().strip() for field in self.fields]
            self.client = ChatClient(host, port, nickname)
            self.client.start()
            self.say("Connecting\u2026")

    def say(self, text):
        """Show a text over the button, which works only while there is no client."""
        self.status_label["text"] = text
        self.join_button.state(["disabled" if self.client else "!disabled"])

    def look(self):
        """Take the answer, if there is one. The GUI thread waits for nothing."""
        if not self.client or self.client.incoming.empty():
            return
        client, self.client = self.client, None
        answer = client.incoming.get()
        if not isinstance(answer, ChatError):
            self.chat_window.start_chat(client, answer)
            self.cancel()    # hide, now that there is a window behind
            return
        self.say(answer)
        if isinstance(answer, NicknameRefused):    # so that one types over it
            self.fields[0].focus()
            self.fields[0].selection_range(0, "end")

    def show(self):
        """Bring the dialog to the front, if it is needed."""
        if not self.chat_window.connected:
            self.window.deiconify()
            self.window.lift()
            self.fields[0].focus()

    def cancel(self, event=None):
        """Hide, and give up a try. Without a window behind the dialog the program ends."""
        if self.client:
            self.client.cancel()
            self.client = None
        self.say("")
        self.window.withdraw()
        if self.chat_window.root.state() == "withdrawn":
            self.chat_window.on_closing()

    def build_widgets(self, values):
        """Lay out a field for each value, a line for what is wrong, and the button."""
        self.window = tkinter.Toplevel(self.chat_window.root)
        self.window.withdraw()
        self.window.title("Join the chat")
        form = ttk.Frame(self.window, padding=16)
        form.pack()
        self.fields = []
        for name, value in values.items():
            ttk.Label(form, text=name).pack(anchor="w")
            field = ttk.Entry(form, width=32)
            field.insert(0, value)
            field.pack(fill="x", pady=(0, 8))
            self.fields.append(field)
        self.status_label = ttk.Label(form, wraplength="9c")
        self.status_label.pack(anchor="w")
        self.join_button = ttk.Button(form, text="Join", command=self.join)
        self.join_button.pack(anchor="e")
        self.window.bind("<<Return>>", self.join)
        self.window.bind("<Escape>", self.cancel)
        self.window.protocol("WM_DELETE_WINDOW", self.cancel)


class Message:
    """A line of the chat, and when it came. Two with equal text are still two (for `is`)."""
    def __init__(self, text):
        self.text, self.time = text, time.strftime("%H:%M  ")


class MessageList:
    """The messages in a Listbox: wrapped, the newest in sight, the oldest forgotten."""
    # By the first word. Their contrast is at least 4.5 (WCAG) on white and on black.
    COLOURS = {"You:": "#1f78cc", "*": "#388538"}
    BORDER = 12    # pixels of the Listbox without text, with some to spare

    def __init__(self, listbox):
        self.listbox = listbox
        self.messages = []
        self.rows = []    # for each row of the Listbox, the Message that it is part of
        self.following = True    # the newest message is in sight
        self.width = listbox.winfo_reqwidth()
        # How many pixels wide is a text? Asking Tk takes long, so the answers are kept.
        self.width_of = functools.lru_cache(None)(font.nametofont("TkTextFont").measure)
        listbox.bind("<Configure>", self.on_resize)
        listbox.bind("<<Copy>>", self.copy)    # Ctrl+C, on macOS Cmd+C

    def add(self, lines):
        """Show lines at the end, and stay at the end if it was in sight."""
        self.following = self.listbox.yview()[1] == 1    # 1: what is in sight ends at the end
        messages = [Message(line) for line in lines]
        self.messages += messages
        self.insert_rows(messages)
        self.forget_oldest()
        if self.following:
            self.listbox.see("end")

    def forget_oldest(self):
        """Keep at most MAX_MESSAGES messages, and MAX_ROWS rows of them."""
        gone = 0    # rows; with none, Tk's delete(0, -1) deletes nothing
        while len(self.messages) > MAX_MESSAGES or len(self.rows) - gone > MAX_ROWS:
            oldest = self.messages.pop(0)
            while self.rows[gone] is oldest:
                gone += 1
        del self.rows[:gone]
        self.listbox.delete(0, gone - 1)

    def insert_rows(self, messages):
        """Wrap messages and add their rows, the second and later ones below the text."""
        for message in messages:
            colour = self.COLOURS.get(message.text.split(" ")[0], "")
            start, indent = message.time, self.width_of(message.time)
            for row in wrap(message.text, self.width - self.BORDER - indent, self.width_of):
                self.rows.append(message)
                self.listbox.insert("end", start + row)
                self.listbox.itemconfigure("end", foreground=colour)
                # The next row begins below the text: with spaces as wide as the time.
                start = " " * round(indent / self.width_of(" "))
            if not self.listbox.curselection():
                self.listbox.activate("end")    # where the arrow keys start

    def on_resize(self, event):
        """Keep the newest in sight. Wrap again when the width stays the same for a moment."""
        if self.following:
            self.listbox.see("end")
        if event.width != self.width:
            self.width = event.width
            self.listbox.after(100, self.rewrap, event.width)

    def rewrap(self, width):
        """Wrap all messages again. The one on top stays there, unless the end was in sight."""
        if self.rows and width == self.width:    # or it has changed again
            top = self.rows[self.listbox.nearest(0)]
            self.rows.clear()
            self.listbox.delete(0, "end")
            self.insert_rows(self.messages)
            self.listbox.yview("end" if self.following else self.rows.index(top))

    def copy(self, event):
        """Copy the messages that the selected rows are part of, whole, without the wrapping."""
        chosen = {self.rows[index] for index in self.listbox.curselection()}
        if chosen:
            texts = [message.text for message in self.messages if message in chosen]
            self.listbox.clipboard_clear()
            self.listbox.clipboard_append("\n".join(texts))


WIDE = "\u2e80-\uffef\U0001f000-\U0003ffff"    # Chinese, Japanese, Korean, emoji
WORD = f"[{WIDE}]|[^{WIDE} ]* ?"    # such a letter, or a word and the space after it


def wrap(text: str, width: int, width_of):
    """Cut text into rows of at most `width` pixels: between words, else anywhere."""
    rows, room = [""], width    # room: what is left of the last row
    for word in re.findall(WORD, text):
        too_long = sum(map(width_of, word)) > width
        for piece in word if too_long else [word]:    # each letter, or the word as a whole
            piece_width = sum(map(width_of, piece))
            if piece_width > room:
                rows.append("")
                room = width
            rows[-1] += piece
            room -= piece_width
    return rows


def set_habits(root):
    """Large letters, Enter presses a button that has the keyboard, Ctrl+A selects (on X11)."""
    font.nametofont("TkTextFont").configure(size=13)    # for the projector
    root.event_add("<<Return>>", "<Return>", "<KP_Enter>")    # the second: on the number pad
    root.bind_class("TButton", "<<Return>>", lambda event: event.widget.invoke())
    if root.tk.call("tk", "windowingsystem") == "x11":
        ttk.Style().theme_use("clam")    # what Tk takes on Linux looks older than Linux does
        root.event_delete("<<LineStart>>", "<Control-a>")
        root.event_add("<<SelectAll>>", "<Control-a>")


################ The program
def open_window(host, port, nickname):
    """Run the window. Raises ChatError if there is no Tkinter or no screen."""
    if tkinter is None:
        raise ChatError("This Python has no Tkinter, which the window needs (Debian, Ubuntu: "
                        "sudo apt install python3-tk). Or: python chat_client.py --text")
    with contextlib.suppress(ImportError, AttributeError, OSError):    # Windows alone has it
        import ctypes
        ctypes.OleDLL("shcore").SetProcessDpiAwareness(1)    # or letters are blurred
    try:
        window = ChatWindow(host, port, nickname)
    except tkinter.TclError as error:
        raise ChatError(f"There is no screen for a window: {error}. "
                        "Without one: python chat_client.py --text")
    signal.signal(signal.SIGINT, lambda *_: window.root.after(0, window.on_closing))    # Ctrl+C
    window.root.createcommand("tk::mac::Quit", window.on_closing)    # Cmd+Q
    window.root.mainloop()


def main():
    """Read the options, and chat in a window or in the terminal."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--host", default=HOST, help="name or address of the server's computer")
    parser.add_argument("--port", type=int, default=PORT, help="the server's port")
    parser.add_argument("--nickname", default="", help="what to be called; else you are asked")
    parser.add_argument("--text", action="store_true", help="chat in the terminal")
    args = parser.parse_args()
    try:
        if args.text:
            chat_in_terminal(args.host, args.port, args.nickname)
        else:
            open_window(args.host, args.port, args.nickname)
    except ChatError as error:
        sys.exit(error)
    except (EOFError, KeyboardInterrupt):
        pass    # Ctrl+D (on Windows Ctrl+Z and Enter) or Ctrl+C instead of a nickname
    except OSError:
        os._exit(1)    # the input or the output is broken: there is nobody to tell


if __name__ == "__main__":
    main()
