"""A chat client: a window or, with --text, a terminal.

Run it:   python chat_client.py             (a dialog asks for the nickname)
          python chat_client.py --host 192.168.1.20 --nickname Ada
          python chat_client.py --text      (no window, no Tkinter needed)

One connection, two user interfaces. ChatClient handles the network: its
thread waits for lines and puts them in a queue. With --text, the main thread
waits for the keyboard, and a third thread (print_lines) takes the lines out
of the queue. In a window, the main thread looks into the queue every 20 ms
(process_incoming), because only the main thread may touch widgets.
"""

import argparse
import contextlib
import functools
import os
import queue
import re
import select
import shutil
import signal
import socket
import sys
import threading
import time

try:
    import tkinter
    from tkinter import font, ttk
except ImportError:
    tkinter = None  # The terminal does not need it.

HOST = "127.0.0.1"
PORT = 7500
MAX_LINE_BYTES = 4096  # as in the server, without the line ending
JOIN_TIMEOUT = 10  # seconds, to connect and to join
CLOSE_TIMEOUT = 10  # seconds, for the server to read the last messages
SECONDS_PER_LINE = 0.05  # with --text: the server's default rate
MAX_LINES_PER_SEND = 40  # of pasted text: the server's default burst
POLL_INTERVAL_MS = 20
MAX_LINES_PER_POLL = 100  # so that the window responds between two polls
MAX_MESSAGES = 5000  # in the window
MAX_ROWS = 10_000  # of these messages: a long one fills several rows
MARGIN = 24  # pixels of the window's width without text


# --- The connection ---

class ChatError(Exception):
    """An error. Its text is a message for the user."""


class NicknameError(ChatError):
    """The nickname was rejected. The text is the reason."""


# No delay for small messages. TCP keepalive detects a dead connection: after
# 30 idle seconds (macOS: TCP_KEEPALIVE), 3 probes, 10 seconds apart. 60,000 ms
# to acknowledge data. No system has all of these options.
SOCKET_OPTIONS = {
    "TCP_NODELAY": 1, "SO_KEEPALIVE": 1, "TCP_KEEPIDLE": 30,
    "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 60_000}
# Removed from received text, because they could control the terminal. They
# include line endings, tabs, and bidirectional formatting characters.
CONTROL_CHARACTERS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class ChatClient:
    """A connection to a chat server: start it, send messages, close it.

    host, port and nickname are str. The thread fills the queue `incoming`, a
    queue.Queue: ("line", str) for each line after joining, and at the end
    ("error", ChatError) or, if the server closed the connection, ("closed",
    ChatError). Later items are meaningless. The errors are queued, because
    an exception that is raised in one thread cannot be caught in another.
    """

    def __init__(self, host, port, nickname):
        self.host = host
        self.port = str(port)
        self.nickname = " ".join(nickname.split())
        self.incoming = queue.Queue()
        self.socket = None
        self.file = None
        self.closing = False
        self.thread = threading.Thread(
            target=self.receive_messages, daemon=True)  # ends with the program
        self.timer = threading.Timer(JOIN_TIMEOUT, self.on_join_timeout)
        self.timer.daemon = True

    def start(self):
        """Connect and receive in a thread. Returns immediately."""
        self.timer.start()
        self.thread.start()

    def receive_messages(self):
        """Put what is received in the queue. The client's thread runs this."""
        try:
            self.connect()
            with self.socket, self.socket.makefile("rb") as self.file:
                # During connect, the user canceled or the timer expired.
                if self.closing:
                    return
                line = self.register_nickname()
                self.timer.cancel()
                while True:
                    self.incoming.put(("line", line))
                    line = self.read_line()
        except EOFError:
            self.incoming.put((
                "closed", ChatError("The server closed the connection.")))
        except ChatError as error:
            self.incoming.put(("error", error))

    def connect(self):
        """Connect to the server. Raises ChatError."""
        self.check_input()
        try:
            # A name can have two addresses: each gets half of the time.
            self.socket = socket.create_connection(
                (self.host, int(self.port)), JOIN_TIMEOUT / 2)
        except (socket.gaierror, UnicodeError) as error:
            raise ChatError(f"Cannot find a computer called {self.host}. "
                            "Check the name.") from error
        except OSError as error:
            raise ChatError(
                f"Cannot connect to {self.host} port {self.port}. Is the "
                "server running? If it is on another computer, start it "
                "there with --host 0.0.0.0.") from error
        self.socket.settimeout(None)  # From now on, reads wait indefinitely.
        # If the connection is already closed, read_line will report that.
        with contextlib.suppress(OSError):
            for name, value in SOCKET_OPTIONS.items():
                level = (socket.SOL_SOCKET if name.startswith("SO_")
                         else socket.IPPROTO_TCP)
                if option := getattr(socket, name, 0):
                    self.socket.setsockopt(level, option, value)

    def check_input(self):
        """Raise ChatError if the nickname, host or port cannot be right."""
        if not self.nickname:
            raise NicknameError("Type a nickname.")
        # Empty, or with a slash, a bracket or only one colon.
        if re.search(r"^$|[/\[]|^[^:]*:[^:]*$", self.host):
            raise ChatError("Type only the server's name or address. The port "
                            "has its own field (--port).")
        if (not re.fullmatch("[0-9]{1,5}", self.port)
                or not 1 <= int(self.port) <= 65535):
            raise ChatError("The port must be a number from 1 to 65535.")

    def register_nickname(self):
        """Send the nickname. Returns the first line from the room (str).

        The server asks for it with "NICK", and if it rejects the nickname,
        again with "NICK <reason>". Raises NicknameError, ChatError, EOFError.
        """
        line = self.read_line()
        # Some other servers do not request a nickname.
        if line.startswith("NICK"):
            self.send_message(self.nickname)
            line = self.read_line()
            if line.startswith("NICK"):
                raise NicknameError(line[5:])  # the reason
        return line

    def read_line(self):
        """Return the next line (str). Raises ChatError, EOFError at the end.

        TCP delivers bytes, not messages: each message ends with b"\\n".
        """
        try:
            line = self.file.readline(8192)  # bytes, fewer than MAX_ROWS
        except OSError as error:
            raise ChatError(
                "The connection to the server was lost.") from error
        if not line:  # Not even b"\n": the server closed the connection.
            raise EOFError
        return CONTROL_CHARACTERS.sub("", line.decode("utf-8", "replace"))

    def send_message(self, text, wait=True):
        """Send a message (str). Raises ChatError if that is not possible.

        wait=False: raise it instead of waiting, so that no window freezes.
        """
        data = text.encode("utf-8", "replace")
        if len(data) > MAX_LINE_BYTES:
            raise ChatError(
                f"Not sent: a message can have at most {MAX_LINE_BYTES} "
                f"bytes, and this one has {len(data)}.")
        try:
            # select returns 3 lists. The second contains writable sockets.
            if not wait and not select.select([], [self.socket], [], 0)[1]:
                raise ChatError("Not sent: the connection is busy. Try again.")
            self.socket.sendall(data + b"\n")
        except (OSError, ValueError) as error:
            raise ChatError("Not sent: there is no connection to the "
                            "server.") from error

    def on_join_timeout(self):
        """Give up after JOIN_TIMEOUT seconds. The timer's thread runs this."""
        self.incoming.put(("error", ChatError(
            f"{self.host} port {self.port} does not answer. "
            "Is it a chat server?")))
        self.shut_down(socket.SHUT_RDWR)

    def shut_down(self, how):
        """End the connection (SHUT_RDWR) or only sending (SHUT_WR).

        SHUT_RDWR also ends a read_line that waits in another thread.
        """
        self.closing = True
        # There is no connection yet, or it is already closed.
        with contextlib.suppress(OSError, AttributeError):
            self.socket.shutdown(how)

    def close(self, timeout):
        """Stop sending, and wait until the server has read everything.

        Then the server closes its side, and that ends the thread: join waits
        for this, `timeout` seconds at most. Closing the socket immediately
        could lose the last messages: if received data is still unread, the
        system resets the connection.
        """
        self.shut_down(socket.SHUT_WR)
        if self.socket:
            self.thread.join(timeout)


# --- The terminal ---

def chat_in_terminal(host, port, nickname):
    """Send lines that are typed, print lines that are received.

    Ends after Ctrl+D, Ctrl+C or /quit. Raises ChatError.
    """
    for stream in (sys.stdin, sys.stdout):
        if not hasattr(stream, "reconfigure"):
            raise ChatError("--text does not work in IDLE. Use a terminal.")
        # A pipe on Windows would have another encoding.
        stream.reconfigure(
            encoding="utf-8", errors="replace", line_buffering=True)
    client, first_line = join_in_terminal(host, port, nickname)
    printer = threading.Thread(
        target=print_lines, args=(client, first_line), daemon=True)
    printer.start()
    with contextlib.suppress(KeyboardInterrupt):
        send_input(client)
    client.close(CLOSE_TIMEOUT)
    # The server reads long input from a pipe slowly: wait until it has all.
    while not sys.stdin.isatty() and client.thread.is_alive():
        client.close(0.1)
    printer.join(2)  # seconds


def join_in_terminal(host, port, nickname):
    """Return a client that has joined and its first line.

    Raises ChatError.
    """
    while True:
        client = ChatClient(host, port, nickname or input("Nickname: "))
        client.start()
        # On Windows, Ctrl+C cannot interrupt get (Python issue 74157).
        while client.incoming.empty():
            time.sleep(0.05)
        kind, answer = client.incoming.get()
        if kind == "line":
            return client, answer
        # The next line from a pipe is a message, not another nickname.
        if not isinstance(answer, NicknameError) or not sys.stdin.isatty():
            raise answer
        print(answer)
        nickname = ""


def send_input(client):
    """Send the lines from the keyboard or from a pipe until /quit."""
    for line in sys.stdin:
        line = line.rstrip()
        if line.split(" ")[0] == "/quit":
            break
        try:
            client.send_message(line)
        except ChatError as error:
            print_line(error)
        time.sleep(SECONDS_PER_LINE)


def print_lines(client, line):
    """Print this line, then each received line. A thread runs this."""
    # OSError: broken pipe (nobody reads the output) or full disk.
    with contextlib.suppress(OSError):
        kind = "line"
        while kind == "line":
            print_line(line)
            kind, line = client.incoming.get()
        # Normal: after reading everything, the server closed it.
        if kind == "closed" and client.closing:
            return
        print_line(line)
    # sys.exit ends only this thread, not one that waits for the keyboard.
    os._exit(1)


def print_line(line):
    """Print a line or an error; in a terminal, above the typed line."""
    if os.name == "nt" or not sys.stdin.isatty() or not sys.stdout.isatty():
        print(line)
        return
    width = shutil.get_terminal_size().columns - 2
    indent = ""
    # From U+1100 on, a character can be two columns wide.
    for row in wrap(str(line), width, lambda char: 1 + (char >= "\u1100")):
        # ANSI escape codes: scroll if this is the last row; save the cursor;
        # insert a row, print it; restore the cursor, move it with its row.
        print(f"\x1bD\x1b[A\x1b7\r\x1b[L{indent}{row}\x1b8\x1b[B",
              end="", flush=True)
        # Without it, the next row could look like a message of its own.
        indent = "  "


# --- The window ---

# The contrast of these colors is at least 4.5 on white and on black (WCAG 2).
OWN_COLOR = "#1f78cc"
NOTICE_COLOR = "#388538"
ERROR_COLOR = "#d23f3f"


class ChatWindow:
    """The window of the chat. It is hidden until the client has joined."""

    def __init__(self, host, port, nickname):
        hide_color_fonts()
        self.root = tkinter.Tk(className="Chat")
        self.root.withdraw()
        self.client = None  # a ChatClient from connecting until it ends
        self.joined = False
        self.nickname = nickname
        self.unread = 0  # messages
        self.build_widgets()
        self.dialog = JoinDialog(self, nickname, host, port)
        if nickname:
            self.dialog.connect()
        # Wait briefly: if the client has joined by then, show does nothing.
        self.root.after(150, self.dialog.show)
        self.process_incoming()

    def process_incoming(self):
        """Show what has been received, and schedule the next call."""
        try:
            # The list scrolls to new messages only if it is at the bottom.
            self.message_list.at_bottom = self.message_listbox.yview()[1] == 1
            if self.client:
                self.show_incoming()
            self.message_list.trim_history()
            self.update_title()
        finally:
            # Even after an error. Between two calls, Tk can do other work.
            self.root.after(POLL_INTERVAL_MS, self.process_incoming)

    def show_incoming(self):
        """Show a limited number of queued lines, so that nothing freezes."""
        for _ in range(min(MAX_LINES_PER_POLL, self.client.incoming.qsize())):
            kind, value = self.client.incoming.get()
            if kind != "line":
                self.on_error(value)
                break
            if not self.joined:
                self.start_chat()
            self.message_list.add(value)
            self.unread += not value.startswith("* ")

    def start_chat(self):
        """Show the window: the client has joined."""
        self.joined = True
        self.nickname = self.client.nickname
        self.dialog.window.withdraw()
        self.send_button.configure(text="Send", command=self.send_message)
        self.root.deiconify()
        self.dialog.window.transient(self.root)  # from now on, always above
        self.entry_field.focus()

    def on_error(self, error):
        """Show the error (ChatError) that ended the connection."""
        self.client = None
        self.dialog.set_status(error, ERROR_COLOR)
        if self.joined:
            self.joined = False
            self.message_list.add(f"! {error}", ERROR_COLOR)
            self.send_button.configure(
                text="Reconnect", command=self.dialog.reconnect)
        elif isinstance(error, NicknameError):
            self.dialog.select_nickname()

    def update_title(self):
        """Set the title. Nothing is unread if the user sees the last row."""
        if self.root.focus_displayof() and self.message_list.at_bottom:
            self.unread = 0
        title = f"Chat - {self.nickname}"
        if self.unread:
            title = f"({self.unread}) {title}"
        if not self.joined:
            title += " (connection lost)"
        if title != self.root.title():
            self.root.title(title)

    def send_message(self, event=None):
        """Send the lines in the entry. Lines that cannot be sent are kept."""
        lines = list(filter(str.strip, self.entry_field.get().splitlines()))
        try:
            for line in lines[:MAX_LINES_PER_SEND]:
                command = line.split(" ")[0]
                if command == "/quit":
                    self.on_closing()
                    return
                if not self.joined:
                    raise ChatError("Not sent: click Reconnect first.")
                self.client.send_message(line, wait=False)
                # /who is a command, /usr/bin is a message.
                if command.rfind("/") != 0:
                    self.message_list.add(f"You: {line}", OWN_COLOR)
                del lines[0]
            if lines:
                self.message_list.add(
                    f"* Sent {MAX_LINES_PER_SEND} lines, {len(lines)} to go. "
                    "Press Enter to send the next ones.")
        except ChatError as error:
            self.message_list.add(f"! {error}", ERROR_COLOR)
        self.entry_field.delete(0, "end")
        self.entry_field.insert(0, "\n".join(lines))
        self.entry_field.focus()
        self.message_listbox.see("end")

    def redirect_key(self, event):
        """Type a key in the entry that was pressed on the messages."""
        # Bits of state: 4 is Control, 0x20000 is Alt on Windows, 8 is Alt on
        # Linux and Cmd on macOS. AltGr on Windows is Control and Alt.
        alt_gr = 4 | (0x20000 if os.name == "nt" else 8)
        if (event.char and event.char.isprintable()
                and event.state & alt_gr in (0, alt_gr)):
            self.entry_field.focus()
            self.entry_field.insert("insert", event.char)
            return "break"  # Otherwise the Listbox processes it also.

    def on_closing(self):
        """Close the window, then the connection, which can take longer."""
        # A pending timer would fail without a window.
        self.root.eval("foreach timer [after info] {after cancel $timer}")
        self.root.destroy()
        if self.client:
            self.client.close(CLOSE_TIMEOUT)

    def build_widgets(self):
        """Create the entry, the button and the Listbox with a scrollbar."""
        self.root.minsize(360, 240)
        self.root.protocol("WM_DELETE_WINDOW", self.on_closing)
        configure_tk(self.root)
        bottom = ttk.Frame(self.root, padding=8)
        self.entry_field = ttk.Entry(bottom)
        self.send_button = ttk.Button(bottom)
        listbox = tkinter.Listbox(
            self.root, width=60, height=20, font="TkTextFont",
            activestyle="none", selectmode="extended", exportselection=False,
            borderwidth=8, relief="flat", highlightthickness=0)
        self.message_listbox = listbox
        self.message_list = MessageList(listbox)
        scrollbar = ttk.Scrollbar(self.root, command=listbox.yview)
        listbox["yscrollcommand"] = scrollbar.set
        # Widgets that are packed first keep their size in a small window.
        bottom.pack(side="bottom", fill="x")
        scrollbar.pack(side="right", fill="y")
        listbox.pack(fill="both", expand=True)
        self.send_button.pack(side="right", padx=(8, 0))
        self.entry_field.pack(fill="both", expand=True)
        self.bind_keys(self.entry_field, listbox)

    def bind_keys(self, entry, listbox):
        """Define keys that Tk does not have, or that act on both widgets."""
        entry.bind("<<Return>>", self.send_message)
        listbox.bind("<<Return>>", self.send_message)
        listbox.bind("<Key>", self.redirect_key)
        # A string is a command in Tcl, the language of Tk.
        listbox.bind("<<Paste>>", f"event generate {entry} <<Paste>>")
        entry.bind("<Prior>", f"{listbox} yview scroll -1 pages")  # Page Up
        entry.bind("<Next>", f"{listbox} yview scroll 1 pages")  # Page Down
        modifier = "Command" if sys.platform == "darwin" else "Control"
        for key, step in {"plus": 1, "equal": 1, "KP_Add": 1, "minus": -1,
                          "KP_Subtract": -1}.items():
            self.root.bind(
                f"<{modifier}-{key}>",
                lambda event, step=step: self.message_list.zoom(step))


class JoinDialog:
    """Asks for nickname, server and port until the client has joined."""

    def __init__(self, chat_window, nickname, host, port):
        self.chat_window = chat_window
        self.fields = []
        self.build_widgets(
            {"Nickname": nickname, "Server": host, "Port": port})

    def connect(self, event=None):
        """Connect with the values in the fields, unless it is connecting."""
        if not self.chat_window.client:
            nickname, host, port = [field.get().strip()
                                    for field in self.fields]
            self.chat_window.client = ChatClient(host, port, nickname)
            self.chat_window.client.start()
            self.set_status("Connecting\u2026")

    def reconnect(self):
        """Connect again. The dialog shows the answer."""
        self.show()
        self.connect()

    def set_status(self, text, color=""):
        """Show text (str or ChatError) below the button."""
        self.status_label.configure(text=text, foreground=color)

    def show(self):
        """Show the dialog in the center of the window or of the screen."""
        if not self.chat_window.joined:
            self.window.tk.eval(f"tk::PlaceWindow {self.window} widget .")
            self.fields[0].focus()

    def select_nickname(self):
        """Select the nickname, so that typing replaces it."""
        self.fields[0].focus()
        self.fields[0].selection_range(0, "end")

    def cancel(self, event=None):
        """Hide the dialog. Exit if the window has never been shown."""
        if self.chat_window.client:
            self.chat_window.client.shut_down(socket.SHUT_RDWR)
            self.chat_window.client = None
        self.window.withdraw()
        if self.chat_window.root.state() == "withdrawn":
            self.chat_window.on_closing()

    def build_widgets(self, values):
        """Create a field for each value, a status text and a button."""
        window = tkinter.Toplevel(self.chat_window.root, class_="Chat")
        window.withdraw()
        window.title("Join the chat")
        window.resizable(False, False)
        window.bind("<<Return>>", self.connect)
        window.bind("<Escape>", self.cancel)
        window.protocol("WM_DELETE_WINDOW", self.cancel)
        self.window = window
        form = ttk.Frame(window, padding=16)
        form.pack()
        for name, value in values.items():
            ttk.Label(form, text=name).pack(anchor="w")
            field = ttk.Entry(form, width=32)
            field.insert(0, value)
            field.pack(fill="x", pady=4)
            self.fields.append(field)
        join_button = ttk.Button(form, text="Join", command=self.connect)
        join_button.pack(anchor="e")
        # Below the button, so that a long text does not move the button.
        self.status_label = ttk.Label(form, wraplength="9c")
        self.status_label.pack(anchor="w")


class Message:
    """A message, its color and the time of its arrival."""

    def __init__(self, text, color):
        self.text = text
        self.color = color
        self.time = time.strftime("%H:%M  ")


class MessageList:
    """The messages in a Listbox: wrapped, colored, with their times."""

    def __init__(self, listbox):
        self.listbox = listbox
        self.messages = []
        self.rows = []  # the Message of each row of the Listbox
        self.at_bottom = True  # whether the last row is visible
        self.width = listbox.winfo_reqwidth()  # pixels
        self.font = font.nametofont("TkTextFont")
        # measure is slow, so its results are cached.
        self.text_width = functools.lru_cache(None)(self.font.measure)
        listbox.bind("<Configure>", self.on_resize)
        listbox.bind("<<Copy>>", self.copy)

    def add(self, line, color=""):
        """Add a line (str). Scroll to it if the last row was visible."""
        if line.startswith("* "):
            color = NOTICE_COLOR
        message = Message(line, color)
        self.messages.append(message)
        self.insert_rows(message)
        if self.at_bottom:
            self.listbox.see("end")

    def trim_history(self):
        """Keep at most MAX_MESSAGES messages and MAX_ROWS rows."""
        # All in one call of delete, which takes long.
        count = 0
        while (len(self.messages) > MAX_MESSAGES
               or len(self.rows) - count > MAX_ROWS):
            oldest = self.messages.pop(0)
            while self.rows[count] is oldest:
                count += 1
        del self.rows[:count]
        self.listbox.delete(0, count - 1)  # (0, -1) deletes nothing

    def insert_rows(self, message):
        """Wrap a message and append its rows to the Listbox."""
        start = message.time
        indent = self.text_width(start)
        for row in wrap(message.text, self.width - MARGIN - indent,
                        self.text_width):
            self.rows.append(message)
            self.listbox.insert("end", start + row)
            self.listbox.itemconfigure("end", foreground=message.color)
            # Before the next rows: spaces that are as wide as the time.
            start = " " * round(indent / self.text_width(" "))

    def on_resize(self, event):
        """Wrap again when the width has not changed for a moment."""
        if self.at_bottom:
            self.listbox.see("end")
        if event.width != self.width:
            self.width = event.width
            self.listbox.after(100, self.rewrap, event.width)

    def rewrap(self, width):
        """Wrap all messages again, unless the width has changed since.

        The last row or, elsewhere, the message at the top stays visible.
        """
        if self.rows and width == self.width:
            top = self.rows[self.listbox.nearest(0)]
            self.rows.clear()
            self.listbox.delete(0, "end")
            for message in self.messages:
                self.insert_rows(message)
            self.listbox.yview(
                "end" if self.at_bottom else self.rows.index(top))

    def zoom(self, step):
        """Make the text larger or smaller by `step` points."""
        # The window keeps its size.
        self.listbox.master.pack_propagate(False)
        self.font.configure(size=min(40, max(8, self.font["size"] + step)))
        self.text_width.cache_clear()
        self.rewrap(self.width)

    def copy(self, event):
        """Copy the selected messages, without the wrapping."""
        # A dict keeps the order, and contains each message once.
        selected = dict.fromkeys(
            self.rows[index] for index in self.listbox.curselection())
        if selected:
            self.listbox.clipboard_clear()
            self.listbox.clipboard_append(
                "\n".join(message.text for message in selected))


# A Chinese, Japanese or Korean character or an emoji, or else a word with the
# space after it: a row can end after each of them.
WORD = ("[\u2e80-\uffef\U0001f000-\U0003ffff]|"
        "[^\u2e80-\uffef\U0001f000-\U0003ffff ]* ?")


def wrap(text, width, text_width):
    """Return text (str) as rows (list of str) that are not wider than width.

    text_width is a function that returns the width of a text in the same unit.
    A word that is wider than a row is cut between two characters.
    """
    rows = [""]
    remaining_width = width
    for word in re.findall(WORD, text):
        too_wide = sum(map(text_width, word)) > width
        for part in word if too_wide else [word]:
            part_width = sum(map(text_width, part))
            if part_width > remaining_width:
                rows.append("")
                remaining_width = width
            rows[-1] += part
            remaining_width -= part_width
    return rows


def configure_tk(root):
    """Set the text size, keys and the context menu of all widgets."""
    font.nametofont("TkTextFont").configure(size=13)  # points
    # <<Return>> is our name for two keys. In Tcl, %W is the widget.
    root.event_add("<<Return>>", "<Return>", "<KP_Enter>")
    root.bind_class("TButton", "<<Return>>", "%W invoke")
    if root.call("tk", "windowingsystem") == "x11":
        ttk.Style().theme_use("clam")  # The default theme looks old.
        root.event_delete("<<LineStart>>", "<Control-a>")
        root.event_add("<<SelectAll>>", "<Control-a>")
    ttk.Style().configure(".", font="TkTextFont")
    # Otherwise the text cursor does not move when the text size changes.
    root.bind_class("TEntry", "<Configure>", "%W configure -font TkTextFont")
    menu = tkinter.Menu(root, tearoff=False)
    for name in ("Cut", "Copy", "Paste"):
        menu.add_command(label=name,
                         command=f"event generate [focus] <<{name}>>")
    # The mouse is at %x, %y in the widget %W and at %X, %Y on the screen.
    select_row = ("if {![%W selection includes @%x,%y]} {%W selection clear "
                  "0 end; %W selection set @%x,%y};")
    for widget_class, action in {"TEntry": "", "Listbox": select_row}.items():
        root.bind_class(widget_class, "<<ContextMenu>>",
                        f"focus %W; {action} tk_popup {menu} %X %Y")


# A scalable font without outlines is a color font, made of bitmaps.
NO_COLOR_FONTS = b"""<fontconfig><selectfont><rejectfont><pattern>
    <patelt name="scalable"><bool>true</bool></patelt>
    <patelt name="outline"><bool>false</bool></patelt>
</pattern></rejectfont></selectfont></fontconfig>"""


def hide_color_fonts():
    """Hide color fonts on older Linux systems, where emoji crash Tk.

    The cause is a bug in libXft before version 2.3.6.
    """
    # Tk does not use libXft on Windows, on macOS and in some other cases.
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import ctypes
        # RTLD_NOLOAD: only if Tk has already loaded it.
        libxft = ctypes.CDLL("libXft.so.2", os.RTLD_NOLOAD)
        if libxft.XftGetVersion() < 20306:
            fontconfig = ctypes.CDLL("libfontconfig.so.1")
            fontconfig.FcConfigGetCurrent.restype = ctypes.c_void_p
            config = ctypes.c_void_p(fontconfig.FcConfigGetCurrent())
            fontconfig.FcConfigParseAndLoadFromMemory(
                config, NO_COLOR_FONTS, True)
            fontconfig.FcConfigBuildFonts(config)


# --- The program ---

def open_window(host, port, nickname):
    """Run the window. Raises ChatError if there is no Tkinter or display."""
    if tkinter is None:
        raise ChatError(
            "This Python has no Tkinter. On Debian and Ubuntu, install it: "
            "sudo apt install python3-tk. Or use --text.")
    # Only Windows has this: without it, Windows scales and blurs the window.
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import ctypes
        ctypes.OleDLL("shcore").SetProcessDpiAwareness(1)
    try:
        window = ChatWindow(host, port, nickname)
    except tkinter.TclError as error:
        raise ChatError(f"Cannot open a window: {error}. "
                        "To chat in the terminal, add --text.") from error
    # Ctrl+C in the terminal, and Cmd+Q on macOS.
    signal.signal(signal.SIGINT, lambda *args: window.root.after(
        0, window.on_closing))
    window.root.createcommand("tk::mac::Quit", window.on_closing)
    window.root.mainloop()
    # IDLE and python -i keep running: restore their Ctrl+C handler.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def main():
    """Chat in a window or in the terminal."""
    parser = argparse.ArgumentParser(
        description="A chat client: a window or, with --text, a terminal.")
    parser.add_argument("--host", default=HOST, help="name or address of the "
                        "server's computer (default: %(default)s)")
    parser.add_argument("--port", default=PORT,
                        help="port of the server (default: %(default)s)")
    parser.add_argument("--nickname", default="",
                        help="your name in the chat (default: ask for it)")
    parser.add_argument("--text", action="store_true",
                        help="chat in the terminal, without a window")
    args = parser.parse_args()
    run = chat_in_terminal if args.text else open_window
    try:
        run(args.host, args.port, args.nickname)
    except ChatError as error:
        sys.exit(error)
    except (EOFError, KeyboardInterrupt):
        # Ctrl+D (on Windows Ctrl+Z and Enter) or Ctrl+C.
        pass
    except OSError:
        # The input or the output is broken.
        os._exit(1)


if __name__ == "__main__":
    main()
