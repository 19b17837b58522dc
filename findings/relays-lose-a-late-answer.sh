#!/bin/bash
# Guess: a TCP relay is transparent.  A client that sends its question, ends its sending side as
# "nc -N" does, and waits for the answer works the same through a relay.
# Fact: redir, rinetd, simpleproxy and 6tunnel close both directions as soon as one side has ended its
# input.  An answer that is not yet there is lost, and the client sees a normal end without an error.
# Of the five small relays here only stone passes the end on and keeps the way back open.
# Why it matters: "printf 'question\n' | nc -N host port" works directly, and is silently empty behind
# a port forwarding.  The manuals do not mention it.  A line client should not end its sending side
# before it has its answer.
# Seen with Debian's redir 3.3-1, rinetd 0.73-1, simpleproxy 3.5-1+b2, 6tunnel 1:0.13-2, stone 2.4-1+b2.
set -eu
dir=$(mktemp -d); chmod 755 "$dir"
trap 'rm -rf "$dir"' EXIT
cd "$dir"
for want in redir=3.3-1 rinetd=0.73-1 simpleproxy=3.5-1+b2 6tunnel=1:0.13-2 stone=2.4-1+b2; do
    apt-get download "${want%%=*}" >/dev/null 2>&1 || { echo "No download of ${want%%=*}."; exit 1; }
    have=$(dpkg-deb -f "${want%%=*}"_*.deb Version)
    [ "$have" = "${want#*=}" ] || { echo "This was seen with $want.  The archive has $have."; exit 1; }
    dpkg-deb -x "${want%%=*}"_*.deb .
done
cat > relays.py <<'END'
import contextlib, socket, subprocess, threading, time
def answer(client):
    with client:
        client.makefile("rb").read()   # the whole question
        time.sleep(0.5)                # The answer needs a moment.
        with contextlib.suppress(OSError):
            client.sendall(b"answer\n")
def serve(server):
    while True:
        threading.Thread(target=answer, args=server.accept()[:1], daemon=True).start()
def ask(port):
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(b"question\n")
        client.shutdown(socket.SHUT_WR)
        return client.makefile("rb").read()
def listening(port):
    return any(line.split()[1].endswith(":%04X" % port) and line.split()[3] == "0A"
               for line in open("/proc/net/tcp"))
server = socket.create_server(("127.0.0.1", 21720))
threading.Thread(target=serve, args=[server], daemon=True).start()
open("rinetd.conf", "w").write("127.0.0.1 21722 127.0.0.1 21720\n")
seen = {"direct": ask(21720)}
for port, command in enumerate(["usr/bin/redir -n 127.0.0.1:21721 127.0.0.1:21720",
        "usr/sbin/rinetd -f -c rinetd.conf", "usr/bin/simpleproxy -L 127.0.0.1:21723 -R 127.0.0.1:21720",
        "usr/bin/6tunnel -4 -d -l 127.0.0.1 21724 127.0.0.1 21720",
        "usr/bin/stone 127.0.0.1:21720 127.0.0.1:21725"], 21721):
    relay = subprocess.Popen(command.split(), stdout=-3, stderr=-3)
    end = time.time() + 5
    while not listening(port) and time.time() < end:
        time.sleep(0.1)
    seen[command.split()[0].split("/")[-1]] = ask(port)
    relay.terminate()
print("answer with:", *filter(seen.get, seen), "/ nothing with:", *[n for n in seen if not seen[n]])
END
seen=$(python3 relays.py)
echo "expected (the guess): answer with: direct redir rinetd simpleproxy 6tunnel stone / nothing with:"
echo "seen:                 $seen"
fact="answer with: direct stone / nothing with: redir rinetd simpleproxy 6tunnel"
[ "$seen" = "$fact" ] || { echo "The behavior has changed."; exit 1; }
