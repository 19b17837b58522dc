#!/bin/bash
# Guess: when an IRC user writes a last line and closes the connection, the
# others in the channel are told QUIT at once.
# What happens: with InspIRCd, if the last line and the end of the stream
# arrive together, the server reads the line and misses the end.  Nobody is
# told.  The user stays in the channel until someone else speaks there or
# until the ping timeout.  A user that pauses first is noticed at once.
# Why it matters: scripts and bots write a line and leave.  A loop over
# edge-triggered events has to read until nothing is left.
# Seen with inspircd 3.15.0-1 (Debian 12).
set -eu
want=3.15.0-1 pid= new=
apt="apt-get -y -q -o DPkg::Lock::Timeout=300 --no-install-recommends install inspircd"
d=$(mktemp -d)
finish() {
    [ -z "$pid" ] || { kill "$pid" || true; wait; }
    [ -z "$new" ] || for _ in 1 2 3; do dpkg --purge $new >/dev/null 2>&1 && break; sleep 3; done
    rm -rf "$d"
}
trap finish EXIT
if ! dpkg-query -W -f '${Status}' inspircd 2>/dev/null | grep -q ' installed'; then
    plan=$($apt -s)
    ! grep '^Remv' <<<"$plan" || { echo "the installation would remove packages"; exit 1; }
    new=$(sed -n 's/^Inst \([^ ]*\) (.*/\1/p' <<<"$plan")
    RUNLEVEL=1 $apt >"$d/log" 2>&1 || { cat "$d/log"; exit 1; }
fi
have=$(dpkg-query -W -f '${Version}' inspircd)
[ "$have" = $want ] || { echo "seen with version $want, but this is $have"; exit 1; }
cat > "$d/i.conf" <<'C'
<server name="irc.example.net" description="x" network="X"><admin name="x" nick="x" email="x@example.net">
<bind address="127.0.0.1" port="23421" type="clients"><files motd="/dev/null">
<connect allow="*" timeout="30" resolvehostnames="no" fakelag="no" localmax="9" globalmax="9">
C
inspircd --runasroot --nofork --nopid --config "$d/i.conf" >"$d/log" 2>&1 & pid=$!
for _ in $(seq 100); do grep -q "is now running" "$d/log" && break; sleep 0.1; done
/usr/bin/python3 - <<'P'
import select, socket, sys, time
def heard(s, word, seconds):
    got, end = b"", time.monotonic() + seconds
    while word not in got and time.monotonic() < end:
        got += s.recv(4096) if select.select([s], [], [], 0.1)[0] else b""
    return word in got
def user(name):
    s = socket.create_connection(("127.0.0.1", 23421))
    for line, answer in ((b"NICK %s\r\nUSER %s 0 * :x\r\n" % (name, name), b" 376 "), (b"JOIN #c\r\n", b" 366 ")):
        s.sendall(line); assert heard(s, answer, 10), answer
    return s
ann, seen = user(b"ann"), []
for name, pause in ((b"bob", 0.5), (b"cid", 0)):
    s = user(name)
    s.send(b"PRIVMSG #c :bye\r\n", 0 if pause else socket.MSG_MORE)  # MSG_MORE: together with the end
    time.sleep(pause); s.close()
    seen.append(heard(ann, b":%s!%s@127.0.0.1 QUIT" % (name, name), 3))
ann.sendall(b"PRIVMSG #c :anyone there?\r\n")
seen.append(heard(ann, b":cid!cid@127.0.0.1 QUIT", 5))
print("expected (the guess): QUIT heard after a pause: True, without a pause: True")
print("seen:                 after a pause: %s, without: %s, once another speaks: %s" % tuple(seen))
sys.exit(None if seen == [True, False, True] else "This has changed: the departure is told in another way.")
P
