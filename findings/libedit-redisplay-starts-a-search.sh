#!/bin/bash
# Guess: after a thread prints a message over the typed row, a call of redisplay() paints the row again.
# Fact: GNU readline paints nothing, because it believes that the row is still there.  libedit, which
# most Pythons on macOS use, paints the row, but it also puts Ctrl+R into the keyboard input.  In its readline
# emulation Ctrl+R starts a backward search.  The next letters go into the search and not into the line.
# Somebody types "hel", a message arrives, she types "lo" and Enter: the program gets "hel".
# Why it matters: readline.redisplay() in Python is this call.  A chat client that was tested with
# GNU readline then changes messages silently.  Python 3.11's readline module built with libedit does the same.
# Seen with Debian's libedit2 3.1-20221030-2 and libreadline8 8.2-1.3, Python 3.11.
set -eu
for want in libedit2=3.1-20221030-2 libreadline8=8.2-1.3; do
    have=$(dpkg-query -W -f '${Version}' "${want%%=*}" 2>/dev/null || true)
    [ "$have" = "${want#*=}" ] && continue
    echo "This was seen with $want.  The installed version is: ${have:-none}."; exit 1
done
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat > "$dir/client.py" <<'END'
import ctypes, os, select, sys
lib, lines = ctypes.CDLL(sys.argv[1]), []
@ctypes.CFUNCTYPE(None, ctypes.c_char_p)
def take(line):
    lines.append(line)
    lib.rl_callback_handler_remove()
lib.rl_callback_handler_install(b"> ", take)
typed, told = ctypes.c_char_p.in_dll(lib, "rl_line_buffer"), False
while not lines:
    select.select([0], [], [], 10)
    lib.rl_callback_read_char()
    if typed.value == b"hel" and not told:             # A message arrives.
        told = True
        os.write(1, b"\r\x1b[KMESSAGE\r\n")
        lib.rl_redisplay()
        os.write(1, b"SHOWN")
print("LINE=" + lines[0].decode())
END
cat > "$dir/user.py" <<'END'
import os, pty, select, sys, time
def talk(library):
    pid, fd = pty.fork()
    if not pid:
        os.execvp(sys.executable, [sys.executable, sys.argv[1], library])
    text, end, steps = b"", time.time() + 8, [(b"> ", b"hel"), (b"SHOWN", b"lo"), (b"", b"\r"), (b"", b"\r")]
    while time.time() < end and b"LINE=" not in text:
        if select.select([fd], [], [], 0.3)[0]:
            text += os.read(fd, 4096)
        elif steps and steps[0][0] in text:
            os.write(fd, steps.pop(0)[1])
    os.close(fd)
    os.waitpid(pid, 0)
    painted = text.partition(b"MESSAGE")[2].partition(b"SHOWN")[0].strip()
    return painted.decode(), text.partition(b"LINE=")[2].decode().strip()
both = talk("libreadline.so.8") + talk("libedit.so.2")
print("GNU painted %r, line %r; libedit painted %r, line %r" % both)
END
guess="GNU painted '> hel', line 'hello'; libedit painted '> hel', line 'hello'"
fact="GNU painted '', line 'hello'; libedit painted '> hel', line 'hel'"
seen=$(TERM=xterm python3 "$dir/user.py" "$dir/client.py")
printf 'expected (the guess): %s\nseen: %s\n' "$guess" "$seen"
[ "$seen" = "$fact" ] || { echo "The behavior has changed."; exit 1; }
