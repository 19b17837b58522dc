#!/bin/bash
# Guess: sic sends each line of its standard input as soon as the line is there,
# however many lines arrive in one write.
# What happens: of several lines in one write, sic sends the first.  The others
# stay in its stdio buffer, because select() looks only at the file descriptor.
# They leave when something more is written, or at the end of the input, and
# then sic exits at once with status 1.  Traffic from the server does not help.
# Why it matters: a paste or a script seems lost, then arrives late and all at
# once.  Every loop that mixes select() with buffered reads has this fault,
# also select() with sys.stdin.readline() in Python.
# Seen with sic 1.1-5+b1 (Debian 12).
set -eu
want=1.1-5+b1 new=
apt="apt-get -y -q -o DPkg::Lock::Timeout=300 --no-install-recommends install sic"
d=$(mktemp -d)
finish() {
    [ -z "$new" ] || for _ in 1 2 3; do dpkg --purge $new >/dev/null 2>&1 && break; sleep 3; done
    rm -rf "$d"
}
trap finish EXIT
if ! dpkg-query -W -f '${Status}' sic 2>/dev/null | grep -q ' installed'; then
    plan=$($apt -s)
    ! grep '^Remv' <<<"$plan" || { echo "the installation would remove packages"; exit 1; }
    new=$(sed -n 's/^Inst \([^ ]*\) (.*/\1/p' <<<"$plan")
    RUNLEVEL=1 $apt >"$d/log" 2>&1 || { cat "$d/log"; exit 1; }
fi
have=$(dpkg-query -W -f '${Version}' sic)
[ "$have" = "$want" ] || { echo "seen with version $want, but this is $have"; exit 1; }
/usr/bin/python3 - <<'P'
import socket, subprocess, sys
def lines(seconds):
    got = b""  # messages until it is quiet
    peer.settimeout(seconds)
    try:
        while part := peer.recv(4096):
            got += part
    except TimeoutError:
        pass
    return [line.split(":", 1)[1] for line in got.decode().splitlines() if line.startswith("PRIVMSG")]
server = socket.create_server(("127.0.0.1", 23461))
server.settimeout(10)
sic = subprocess.Popen(["sic", "-h", "127.0.0.1", "-p", "23461", "-n", "ann"], bufsize=0,
                       stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
peer = server.accept()[0]
sic.stdin.write(b":s #c\n")
lines(0.5)
sic.stdin.write(b"one\ntwo\nthree\n")
first = lines(1)
peer.sendall(b":bob!b@example.net PRIVMSG #c :hello\r\n")
traffic = lines(1)
sic.stdin.write(b"four\n")
more = lines(1)
sic.stdin.close()
status = sic.wait(10)
print("expected (the guess): ['one', 'two', 'three'] at once, then ['four']")
print("seen:                 %s at once, %s after traffic, then %s" % (first, traffic, more))
if (first, traffic, more, status) != (["one"], [], ["two", "three", "four"], 1):
    sys.exit("This has changed: sic sends its input at another time.")
P
