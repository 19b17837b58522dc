#!/bin/bash
# Guess: a program frozen with cx_Freeze treats signals as Python does.
# A send to a peer that has left raises BrokenPipeError, and Ctrl+C runs
# the finally blocks.
# What happens: the frozen interpreter starts without Python's signal setup.
# SIGPIPE is not ignored.  The first send to a peer that has left ends the
# whole program, with no traceback and no except or finally block run.
# Ctrl+C also ends it at once, unless some module imports signal.
# Why it matters: one client that leaves takes the whole server down.
# "signal.signal(signal.SIGPIPE, signal.SIG_IGN)" in the program is a cure.
# Seen with cx_Freeze 8.7.3 and 8.5.3, freeze-core 0.8.1, CPython 3.11.
# cx_Freeze 7.2.10, 8.2.0 and 8.4.1 do as Python does.
set -eu
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
cd "$d"
cat > chat.py <<'P'
import socket, sys, time
if sys.argv[1] == "wait":
    try:
        print("ready", flush=True)
        time.sleep(20)
    finally:
        print("cleanup", flush=True)
server = socket.create_server(("127.0.0.1", 23411))
clients, members = [], []
for _ in range(2):
    clients.append(socket.create_connection(("127.0.0.1", 23411)))
    members.append(server.accept()[0])
clients[0].close()
for member in members:
    try:
        for _ in range(5):
            member.sendall(b"news\n")
            time.sleep(0.1)
        print("sent", flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
P
python3 -m venv v
v/bin/pip install -q cx_Freeze==8.7.3 freeze-core==0.8.1 >pip.log 2>&1 || { cat pip.log; exit 1; }
v/bin/cxfreeze build_exe --script chat.py --build-exe "$d/frozen" --silent >cx.log 2>&1 || { cat cx.log; exit 1; }
cat > look.py <<'P'
import signal, subprocess, sys
def look(*command):
    leave = subprocess.run([*command, "leave"], capture_output=True, text=True, timeout=20)
    wait = subprocess.Popen([*command, "wait"], stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, text=True)
    wait.stdout.readline()
    wait.send_signal(signal.SIGINT)
    cleaned = wait.communicate(timeout=20)[0].split()
    return leave.returncode, leave.stdout.split(), cleaned
source, frozen = look(sys.executable, "chat.py"), look("./frozen/chat")
print("expected (the guess): frozen and source alike,", source)
print("seen:                 frozen", frozen)
if source != (0, ["BrokenPipeError", "sent"], ["cleanup"]) or frozen != (-signal.SIGPIPE, [], []):
    sys.exit("This has changed: a frozen program no longer differs in this way.")
P
v/bin/python look.py
