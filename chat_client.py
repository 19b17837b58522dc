"""A chat client: a window or, with --text, a terminal.

Run it:   python chat_client.py             (a dialog asks for the nickname)
          python chat_client.py --host 192.168.1.20 --nickname Ada
          python chat_client.py --text      (no window, no Tkinter needed)

One connection, two user interfaces. ChatClient handles the network: its
receiving thread waits for lines and puts them in a queue. With --text, the
main thread waits for the keyboard, and a third thread (print_lines) takes the
lines out of the queue. In a window, the main thread runs Tk's event loop. Only
this thread may touch widgets, so it polls the queue: a timer calls
process_incoming every 20 ms.
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
    tkinter = None  # The terminal does not need it.

try:
    # input() then knows arrow keys and history, and keeps to one row.
    import readline
    readline.parse_and_bind("set horizontal-scroll-mode on")
except ImportError:
    pass  # Windows has its own line editing.

HOST = "127.0.0.1"
PORT = 7500
MAX_LINE_BYTES = 4096  # as in the server, without the line ending
MAX_RECEIVED_BYTES = 8192  # of one line, with a nickname
JOIN_TIMEOUT = 10  # seconds, to connect and to join
CLOSE_TIMEOUT = 10  # seconds, for the server to read the last messages
SECONDS_PER_LINE = 0.05  # with --text: the server's default rate
MAX_LINES_PER_SEND = 40  # of pasted text: the server's default burst
POLL_INTERVAL_MS = 20
MAX_LINES_PER_POLL = 100  # so that the window responds between two polls
MAX_MESSAGES = 5000  # that the window keeps
MAX_ROWS = 10_000  # that it shows: a long message fills several rows
MARGIN = 24  # pixels of the window's width without text


# --- The connection ---
class ChatError(Exception):
    """An error. Its text is a message for the user."""


class NicknameError(ChatError):
    """The nickname was rejected. The text is the reason."""


# NODELAY: send at once. TCP keepalive detects a dead connection: after 20 idle
# seconds, 4 probes, 10 seconds apart. Unanswered data: also 60 seconds.
SOCKET_OPTIONS = {
    "TCP_NODELAY": 1, "SO_KEEPALIVE": 1,
    "TCP_KEEPIDLE": 20, "TCP_KEEPALIVE": 20,  # Linux, macOS
    "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 60_000}  # ms
# These could control the terminal, or look like the end of a line.
CONTROL_CHARACTERS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def sanitize(text):
    """Return a text (str) without control characters, as the server does."""
    return CONTROL_CHARACTERS.sub("", text.replace("\t", " "))


class ChatClient:
    """A connection to a chat server: start it, send messages, close it.

    host and nickname are str, port str or int. The receiving thread fills
    the queue `incoming`: ("line", str) for each line after joining, and then
    ("error", ChatError) or, if the server closed the connection, ("closed",
    ChatError). Ignore later items: the timer and the thread can both report
    an error. Errors are queued, because an exception that is raised in one
    thread cannot be caught in another.
    """

    def __init__(self, host, port, nickname):
        # Without the invisible characters that a copied address can contain.
        self.host = "".join(filter(str.isprintable, host)).strip()
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
        """Put what is received in the queue. The receiving thread runs it."""
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
            # A name can have several addresses, and each gets this time
            # (Python issue 123793): if three are silent, the fourth answers.
            self.socket = socket.create_connection(
                (self.host, self.port), JOIN_TIMEOUT / 4)
        except (socket.gaierror, UnicodeError) as error:
            raise ChatError(
                f"Cannot find a computer called {self.host}.") from error
        except OSError as error:
            raise ChatError(
                f"Cannot connect to {self.host} port {self.port}. Is the "
                "server running? If it is on another computer, start it "
                "there with --host 0.0.0.0.") from error
        self.socket.settimeout(None)  # From now on, reads wait indefinitely.
        for name, value in SOCKET_OPTIONS.items():
            level = socket.SOL_SOCKET if "SO_" in name else socket.IPPROTO_TCP
            # This system does not have it, or the connection is closed.
            with contextlib.suppress(AttributeError, OSError):
                self.socket.setsockopt(level, getattr(socket, name), value)

    def check_input(self):
        """Raise ChatError if the nickname, host or port cannot be right."""
        if not self.nickname:
            raise NicknameError("Type a nickname.")
        # An IPv6 address has at least two colons.
        if not self.host or "/" in self.host or self.host.count(":") == 1:
            raise ChatError("Type only the server's name or address, no port.")
        if self.port not in map(str, range(1, 65536)):
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
                raise NicknameError(line[5:])  # without "NICK "
        return line

    def read_line(self):
        """Return the next line (str). Raises ChatError, EOFError at the end.

        TCP delivers bytes, not messages: each message ends with b"\\n".
        """
        try:
            line = rest = self.file.readline(MAX_RECEIVED_BYTES)
            # Discard the rest of a longer line: it is not another line.
            while rest and not rest.endswith(b"\n"):
                rest = self.file.readline(MAX_RECEIVED_BYTES)
        except OSError as error:
            raise ChatError(
                "The connection to the server was lost.") from error
        if not line:  # Not even b"\n": the server closed the connection.
            raise EOFError
        return sanitize(line.decode("utf-8", "replace"))

    def send_message(self, text, wait=True):
        """Send a message (str). Raises ChatError if that is not possible.

        wait=False: raise it instead of waiting: a window must not freeze.
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
            raise ChatError("Not sent: there is no connection.") from error

    def on_join_timeout(self):
        """Give up after JOIN_TIMEOUT seconds. The timer's thread runs this."""
        problem = ("does not answer. Is it a chat server?" if self.socket else
                   "was not reached. Use the computer's address, not a name.")
        self.incoming.put(("error", ChatError(
            f"{self.host} port {self.port} {problem}")))
        self.shut_down(socket.SHUT_RDWR)

    def shut_down(self, how):
        """End the connection (SHUT_RDWR) or only sending (a half-close).

        SHUT_RDWR also ends a waiting read_line (on Windows, the server does).
        """
        self.closing = True
        # There is no connection yet, or it is already closed.
        with contextlib.suppress(OSError, AttributeError):
            self.socket.shutdown(how)

    def close(self, timeout):
        """Stop sending, and wait until the server has read everything.

        Then it closes its side, and the thread ends: thread.join waits for it,
        `timeout` seconds (None: without limit). Closing now could lose the
        last messages: unread received data resets the connection.
        """
        self.shut_down(socket.SHUT_WR)
        if self.socket:
            self.thread.join(timeout)


# --- The terminal ---
def chat_in_terminal(host, port, nickname):
    """Send typed lines, print received lines. Raises ChatError."""
    for stream in (sys.stdin, sys.stdout):
        try:
            # A pipe on Windows would have another encoding.
            stream.reconfigure(
                encoding="utf-8", errors="replace", line_buffering=True)
        except (AttributeError, OSError) as error:
            raise ChatError("--text needs a terminal. IDLE, Thonny and "
                            "notebooks have none.") from error
    client, first_line = join_in_terminal(host, port, nickname)
    printer = threading.Thread(
        target=print_lines, args=(client, first_line), daemon=True)
    # print_lines sends this signal. It ends even an input() that is waiting.
    signal.signal(signal.SIGTERM, lambda *args: sys.exit(1))
    printer.start()
    try:
        send_input(client)
    finally:
        # The server reads long input from a pipe slowly: wait for it.
        client.close(CLOSE_TIMEOUT if sys.stdin.isatty() else None)
        printer.join(2)  # seconds


def join_in_terminal(host, port, nickname):
    """Return a client that has joined and its first line. Raises ChatError."""
    while True:
        client = ChatClient(host, port, nickname or input("Nickname: "))
        client.start()
        # Before Python 3.14, Ctrl+C does not end get on Windows (issue 74157).
        while client.incoming.empty():
            time.sleep(0.01)
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
    with contextlib.suppress(EOFError):
        while True:
            lines = input().split("\n")
            for line in map(str.rstrip, lines):
                if line.split(" ")[0] == "/quit":
                    return
                try:
                    client.send_message(line)
                    # The typed row shows only a part of a long line.
                    if len(terminal_rows(line)) > 1:
                        print_line(f"You: {line}")
                except ChatError as error:
                    print_line(error)
                # A paste or a pipe can exceed the server's rate.
                if lines[1:] or not terminal_rows(""):
                    time.sleep(SECONDS_PER_LINE)


def print_lines(client, line):
    """Print this line, then those received. An error ends the program."""
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
    # Here, sys.exit would end only this thread. _exit ends the program, but
    # it would leave a terminal as input() needs it: without echo.
    if not terminal_rows(""):
        os._exit(1)
    print()  # The typed row stays; the shell gets a row of its own.
    os.kill(os.getpid(), signal.SIGTERM)


def terminal_rows(text):
    """Return text as rows of the terminal; [] on Windows and in pipes."""
    if os.name == "nt" or not sys.stdin.isatty() or not sys.stdout.isatty():
        return []
    # From U+1100 on, a character can be two columns wide.
    return wrap(text, (os.get_terminal_size().columns or 80) - 2, lambda part:
                sum(2 if char >= "\u1100" else 1 for char in part))


def print_line(line):
    """Print a line or an error; in a terminal, above the row being typed."""
    rows = terminal_rows(f"{line}")
    if not rows or os.environ.get("TERM") == "dumb":
        print(f"{line}\n", end="")  # one write
        return
    indent = ""
    for row in rows:
        # ANSI escape codes: scroll (D) if this is the last row, and go back up
        # (A); save the cursor (7), insert a row (L), print; restore the cursor
        # (8), move it down (B) with its row. Without \n, logs have no lines.
        print(f"\x1bD\x1b[A\x1b7\r\x1b[L{indent}{row}\n\x1b8\x1b[B",
              end="", flush=True)
        # Without an indent, the next row could look like another message.
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
        self.dialog = JoinDialog(
            self.root, {"Nickname": nickname, "Server": host, "Port": port},
            self.connect, self.cancel)
        if nickname:
            self.dialog.submit()
        # Wait briefly: perhaps the client has joined by then.
        self.dialog_timer = self.root.after(150, self.dialog.show)
        self.process_incoming()

    def connect(self, nickname, host, port):
        """Connect, unless it is connecting. The dialog calls this."""
        if not self.client:
            self.client = ChatClient(host, port, nickname)
            self.client.start()
            self.dialog.set_status("Connecting\u2026")

    def cancel(self, event=None):
        """Stop connecting. Exit if the window has never been shown."""
        if self.client and not self.joined:
            self.client.shut_down(socket.SHUT_RDWR)
            self.client = None
        self.dialog.window.withdraw()
        if self.root.state() == "withdrawn":
            self.on_closing()

    def reconnect(self):
        """Connect again. The dialog shows the answer."""
        self.dialog.show()
        self.dialog.submit()

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
            if not value.startswith("* "):
                self.unread += 1

    def start_chat(self):
        """Show the window: the client has joined."""
        self.joined = True
        self.nickname = self.client.nickname
        self.root.after_cancel(self.dialog_timer)
        self.send_button.configure(text="Send", command=self.send_message)
        self.root.deiconify()
        # First the focus: a hidden dialog cannot pass it on everywhere.
        self.entry_field.focus()
        self.dialog.window.withdraw()
        self.dialog.window.transient(self.root)  # from now on, always above

    def on_error(self, error):
        """Show the error (ChatError) that ended the connection."""
        self.client = None
        self.dialog.set_status(error, ERROR_COLOR)
        if self.joined:
            self.joined = False
            self.message_list.add(f"! {error}", ERROR_COLOR)
            self.send_button.configure(
                text="Reconnect", command=self.reconnect)

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
                # Not a command: these have one slash, at the start.
                if command.rfind("/") != 0:
                    self.message_list.add(f"You: {sanitize(line)}", OWN_COLOR)
                del lines[0]
            if lines:
                self.message_list.add(f"* Sent {MAX_LINES_PER_SEND} lines. "
                                      f"{len(lines)} left: press Enter.")
        except ChatError as error:
            self.message_list.add(f"! {error}", ERROR_COLOR)
        self.entry_field.delete(0, "end")
        self.entry_field.insert(0, "\n".join(lines))
        self.entry_field.focus()
        self.message_listbox.see("end")

    def redirect_key(self, event):
        """Type a key that was pressed in the Listbox into the entry."""
        # In Tk, `state` has a bit for each modifier key that is pressed.
        control = event.state & 4 > 0
        alt = event.state & (0x20000 if os.name == "nt" else 8) > 0
        # Both are AltGr on Windows, which types characters such as @.
        if event.char and event.char.isprintable() and control == alt:
            self.entry_field.focus()
            self.entry_field.insert("insert", event.char)
            return "break"  # Otherwise the Listbox processes it also.

    def on_closing(self):
        """Send no more, close the window, and end the event loop."""
        if self.client:
            self.client.shut_down(socket.SHUT_WR)
        # Cancel all timers: a pending one would fail without a window.
        self.root.eval("foreach timer [after info] {after cancel $timer}")
        self.root.destroy()
        self.root.quit()  # Another Tk window could keep mainloop running.

    def build_widgets(self):
        """Create the entry, the button and the Listbox with a scrollbar."""
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
        for key, step in {"plus": 1, "equal": 1, "KP_Add": 1,
                          "minus": -1, "KP_Subtract": -1}.items():
            self.root.bind(f"<{modifier}-{key}>",
                           functools.partial(self.message_list.zoom, step))
        # Alphabets without A, C, V and X: the keys at their places.
        for name, codes in {"SelectAll": "38 65", "Copy": "54 67",
                            "Paste": "55 86", "Cut": "53 88"}.items():
            # In Tcl: if the key code (%k) is one of these (Linux, Windows),
            # and the character (%N) is neither Latin nor a special key.
            self.root.bind_all("<Control-Key>", f"""+
                if {{%k in {{{codes}}} && %N / 256 ni {{0 255}}}} {{
                    event generate %W <<{name}>>
                }}""")


class JoinDialog:
    """Asks for values (dict: name of the field -> initial value).

    Join calls on_join with the values; Escape calls on_cancel.
    """

    def __init__(self, root, values, on_join, on_cancel):
        self.on_join = on_join
        self.fields = []
        self.build_widgets(root, values, on_cancel)

    def submit(self, event=None):
        """Call on_join with the contents of the fields."""
        self.on_join(*[field.get().strip() for field in self.fields])

    def set_status(self, text, color=""):
        """Show text (str or ChatError) below the button."""
        self.status_label.configure(text=text, foreground=color)
        if isinstance(text, NicknameError):
            self.fields[0].focus()
            self.fields[0].selection_range(0, "end")  # Typing replaces it.

    def show(self):
        """Show the dialog in the center of the window or of the screen."""
        self.window.tk.eval(f"tk::PlaceWindow {self.window} widget .")
        self.fields[0].focus()

    def build_widgets(self, root, values, on_cancel):
        """Create a field for each value, a status text and a button."""
        window = tkinter.Toplevel(root, class_="Chat")
        window.withdraw()
        window.title("Join the chat")
        window.resizable(False, False)
        window.bind("<<Return>>", self.submit)
        window.bind("<Escape>", on_cancel)
        window.protocol("WM_DELETE_WINDOW", on_cancel)
        self.window = window
        form = ttk.Frame(window, padding=16)
        form.pack()
        for name, value in values.items():
            ttk.Label(form, text=name).pack(anchor="w")
            field = ttk.Entry(form, width=32)
            field.insert(0, value)
            field.pack(fill="x", pady=4)
            self.fields.append(field)
        ttk.Button(form, text="Join", command=self.submit).pack(anchor="e")
        # Below the button, so that a long text does not move the button.
        label = ttk.Label(form, width=1)
        label.pack(fill="x")
        self.status_label = label
        # The fields set the width of the text, not the reverse: hence width=1.
        field.bind("<Configure>",
                   lambda event: label.configure(wraplength=event.width))


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
        self.font = font.Font(listbox, name="TkTextFont", exists=True)
        # measure is slow, so its results are cached.
        self.text_width = functools.lru_cache(10_000)(self.font.measure)
        listbox.bind("<Configure>", self.on_resize)
        listbox.bind("<<Copy>>", self.copy)

    def add(self, line, color=""):
        """Add a line (str). Scroll to it if the last row was visible."""
        if line.startswith("* "):
            color = NOTICE_COLOR
        message = Message(line, color)
        self.messages.append(message)
        self.append_rows(self.wrap_message(message))
        if self.at_bottom:
            self.listbox.see("end")

    def wrap_message(self, message):
        """Return the rows of a message: a list of (text, message)."""
        start = message.time
        indent = self.text_width(start)
        rows = []
        for text in wrap(
                message.text, self.width - MARGIN - indent, self.text_width):
            rows.append((start + text, message))
            # The other rows start with spaces that are as wide as the time.
            start = " " * round(indent / self.text_width(" "))
        return rows

    def append_rows(self, rows):
        """Append rows: a list of (text, message)."""
        self.listbox.insert("end", *[text for text, message in rows])
        for index, (text, message) in enumerate(rows, len(self.rows)):
            if message.color:
                self.listbox.itemconfigure(index, foreground=message.color)
        self.rows += [message for text, message in rows]

    def trim_history(self):
        """Keep at most MAX_MESSAGES, and show at most MAX_ROWS."""
        discarded = self.messages[:-MAX_MESSAGES]
        # One call of delete for all rows, because each call takes long.
        count = len(self.rows[MAX_ROWS:])
        while self.rows and self.rows[count] in discarded:
            count += 1
        del self.messages[:len(discarded)]
        del self.rows[:count]
        self.listbox.delete(0, count - 1)  # (0, -1) deletes nothing

    def on_resize(self, event):
        """Wrap again when the width has been the same for 0.1 s: debounce."""
        if self.at_bottom:
            self.listbox.see("end")
        if event.width != self.width:
            self.width = event.width
            self.listbox.after(100, self.rewrap, event.width)

    def rewrap(self, width):
        """Wrap the messages again, unless the width has changed since.

        The last row or, elsewhere, the message at the top stays visible.
        """
        if not self.rows or width != self.width:
            return
        top = self.rows[self.listbox.nearest(0)]
        selected = {self.rows[row] for row in self.listbox.curselection()}
        self.rows.clear()
        self.listbox.delete(0, "end")
        # The newest first: if all are too many rows, the oldest are not shown.
        rows = []
        for message in reversed(self.messages):
            if len(rows) < MAX_ROWS:
                rows += reversed(self.wrap_message(message))
        self.append_rows(rows[::-1])
        for index, message in enumerate(self.rows):
            if message in selected:
                self.listbox.selection_set(index)
        self.listbox.yview("end" if self.at_bottom or top not in self.rows
                           else self.rows.index(top))

    def zoom(self, step, event):
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


# A word with the space after it, or else a space, a Chinese, Japanese or
# Korean character or an emoji: a row can end after each of them.
WORD = re.compile("[^\u2e80-\uffef\U0001f000-\U0003ffff ]+ ?|"
                  "[\u2e80-\uffef\U0001f000-\U0003ffff ]")


def wrap(text, width, text_width):
    """Return text (str) as rows (list of str) that are not wider than width.

    text_width is a function that returns the width of a text in the same unit.
    A word that is wider than a row is cut between two characters.
    """
    rows = []
    row = ""
    remaining_width = width
    for word in WORD.findall(text):
        # Otherwise, its characters are the parts.
        parts = [word] if text_width(word) <= width else word
        for part in parts:
            part_width = text_width(part)
            if part_width > remaining_width:
                rows.append(row)
                row = ""
                remaining_width = width
            row += part
            remaining_width -= part_width
    return [*rows, row]


def configure_tk(root):
    """Set the text size, keys and the context menu of all widgets."""
    root.eval("font configure TkTextFont -size 13")  # points
    # <<Return>> is our name for two keys. In Tcl, %W is the widget.
    root.event_add("<<Return>>", "<Return>", "<KP_Enter>")
    root.bind_class("TButton", "<<Return>>", "%W invoke")
    if root.call("tk", "windowingsystem") == "x11":
        ttk.Style(root).theme_use("clam")  # The default theme looks old.
        keys = ("<Control-a>", "<Control-Lock-A>")  # with Caps Lock
        root.event_delete("<<LineStart>>", *keys)
        root.event_add("<<SelectAll>>", *keys)
    ttk.Style(root).configure(".", font="TkTextFont")
    # Otherwise the text cursor does not move when the text size changes.
    root.bind_class("TEntry", "<Configure>", "%W configure -font TkTextFont")
    menu = tkinter.Menu(root, tearoff=False)
    # On X11, a slight mouse movement chooses the first item: it must be safe.
    for name in ("Copy", "Paste", "Cut"):
        menu.add_command(label=name,
                         command=f"event generate [focus] <<{name}>>")
    # In Tcl: select the row at the mouse (%x, %y) if the widget (%W) has rows.
    for widget_class in ("TEntry", "Listbox"):
        root.bind_class(widget_class, "<<ContextMenu>>", f"""
            focus %W
            catch {{if {{![%W selection includes @%x,%y]}} {{
                %W selection clear 0 end; %W selection set @%x,%y}}}}
            tk_popup {menu} %X %Y""")


# A scalable font without outlines is a color font, made of bitmaps.
NO_COLOR_FONTS = b"""<fontconfig><selectfont><rejectfont><pattern>
    <patelt name="scalable"><bool>true</bool></patelt>
    <patelt name="outline"><bool>false</bool></patelt>
</pattern></rejectfont></selectfont></fontconfig>"""


def hide_color_fonts():
    """Hide color fonts: libXft before 2.3.6 (older Linux) crashes on them."""
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
        raise ChatError(
            f"Cannot open a window: {error}. Use --text.") from error
    # Ctrl+C in the terminal, and Cmd+Q on macOS. A signal handler must not
    # touch widgets: a timer closes the window in the event loop.
    signal.signal(signal.SIGINT, lambda *args: window.root.after(
        0, window.on_closing))
    window.root.createcommand("tk::mac::Quit", window.on_closing)
    window.root.mainloop()
    # From now on, Ctrl+C ends the program. (IDLE and python -i keep running.)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if window.client:
        window.client.close(CLOSE_TIMEOUT)


def main():
    """Chat in a window or in the terminal."""
    parser = argparse.ArgumentParser(
        description="A chat client: a window or, with --text, a terminal.")
    parser.add_argument("--host", default=HOST,
                        help="server's name or address (default: %(default)s)")
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
        print()  # Ctrl+D (on Windows Ctrl+Z and Enter) or Ctrl+C
    except OSError:
        os._exit(1)  # The input or the output is broken.


if __name__ == "__main__":
    main()
