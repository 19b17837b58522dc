#!/bin/bash
# Guess: when an asyncio chat client has ended, the terminal is as it was before.  The next program of the
# same shell script can ask a question with input().
# Fact: aioconsole (and every use of connect_read_pipe(sys.stdin)) sets the terminal to non-blocking mode
# and leaves it so.  The next program's input() raises EOFError at once, although nobody has ended the
# input, and "cat" says "Resource temporarily unavailable".  The mode belongs to the open terminal and not
# to the process.  While the client runs, its standard output is non-blocking as well.
# Why it matters: a script "chat; ask whether to save the log" fails in its second step.  "stty sane" does
# not help.  An interactive bash hides it, because it sets the mode back before each prompt.
# Seen with aioconsole 0.8.1, Python 3.11, dash 0.5.12 and bash 5.2 (bash as a script).
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check aioconsole==0.8.1 2>/dev/null
cat > "$dir/chat.py" <<'END'
import asyncio, os
from aioconsole import ainput
before = os.get_blocking(1)
line = asyncio.run(ainput("chat> "))
print("CHAT got", repr(line), "stdout blocking", before, os.get_blocking(1), flush=True)
END
cat > "$dir/ask.py" <<'END'
try:
    print("ASK got", repr(input("save? ")))
except EOFError:
    print("ASK got EOFError")
END
cat > "$dir/user.py" <<'END'
import os, pty, select, sys, time
python, folder = sys.argv[1:]
steps = "%s chat.py; stty sane; %s ask.py; exit" % (python, python)
pid, fd = pty.fork()
if not pid:
    os.chdir(folder)
    os.execvp("sh", ["sh", "-c", steps])
text, end = b"", time.time() + 15
answers = [(b"chat> ", b"hello\n"), (b"save? ", b"yes\n")]
while time.time() < end and b"ASK got" not in text:
    if answers and answers[0][0] in text:
        time.sleep(0.3)                # a person reads before she types
        os.write(fd, answers.pop(0)[1])
    if select.select([fd], [], [], 0.1)[0]:
        text += os.read(fd, 4096)
while b"\n" not in text.partition(b"ASK got")[2] and time.time() < end:
    text += os.read(fd, 4096)
os.close(fd)
os.waitpid(pid, 0)
print(*[text[text.index(w):].split(b"\r")[0].decode() for w in (b"CHAT got", b"ASK got")], sep="; ")
END
guess="CHAT got 'hello' stdout blocking True True; ASK got 'yes'"
fact="CHAT got 'hello' stdout blocking True False; ASK got EOFError"
seen=$(python3 "$dir/user.py" "$dir/venv/bin/python" "$dir")
printf '%s\n' "expected (the guess): $guess" "seen:                 $seen"
[ "$seen" = "$fact" ] || { echo "The behavior has changed."; exit 1; }
