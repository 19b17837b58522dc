#!/bin/bash
# Guess: the small IRC client ii sends one message for each line that is written into its "in" file.  A line
# that is too long is cut, and the next message is sent as usual.
# Fact: ii cuts a long line to 511 bytes and loses the CR LF at its end with it.  So the next message is
# glued to the long one: the server gets one line for both.  A server keeps 512 bytes of a line, and so
# nobody reads the second message.  ii's own log shows both messages whole, as if they had been sent.
# Why it matters: bots and scripts write into ii without looking.  One long link makes the following
# command vanish.  A client must cut the text first and add the line end afterwards, and a server must
# expect that what it reads as one line was two.  The manual does not mention it.
# Seen with Debian's ii 1.8-3+ds+b1.
set -eu
port=21861
dir=$(mktemp -d); chmod 755 "$dir"; ii=
trap '[ -z "$ii" ] || kill "$ii" 2>/dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
apt-get download ii >/dev/null 2>&1 || { echo "No download of ii."; exit 1; }
have=$(dpkg-deb -f ii_*.deb Version)
[ "$have" = 1.8-3+ds+b1 ] || { echo "Seen with ii 1.8-3+ds+b1.  The archive now has $have."; exit 1; }
dpkg-deb -x ii_*.deb .
cat > server.py <<'END'
# Welcome one client, and write down the channel messages that it sends, until the text "third".
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    server.settimeout(15)
    print("ready", flush=True)
    client = server.accept()[0]
    client.settimeout(10)
    client.sendall(b":server 001 anna :Welcome\r\n")
    for line in client.makefile("rb"):
        if line.startswith(b"PRIVMSG"):
            print(len(line), "bytes with", line.count(b"PRIVMSG"), "message(s)", flush=True)
        if b"third" in line:
            break
END
wait_for() {  # wait_for COMMAND...: try the command for eight seconds
    local i
    for i in $(seq 80); do "$@" && return; sleep 0.1; done
    echo "This never worked: $*"; exit 1
}
python3 server.py "$port" > got &
server=$!
wait_for grep -q ready got
usr/bin/ii -i . -s 127.0.0.1 -p "$port" -n anna > /dev/null 2>&1 &
ii=$!
wait_for test -p 127.0.0.1/in
echo '/j #room' > 127.0.0.1/in
wait_for test -p '127.0.0.1/#room/in'
exec 3> '127.0.0.1/#room/in'
echo first >&3
wait_for grep -q 22 got
long=$(printf 'y%.0s' $(seq 500))
printf '%s\nsecond\nthird\n' "$long" >&3
wait "$server"
seen="sent: $(tail -n +3 got | paste -sd ,) / whole in the log: $(grep -cE '> (first|y{500}|second|third)$' '127.0.0.1/#room/out')"
guess="sent: 512 bytes with 1 message(s),23 bytes with 1 message(s),22 bytes with 1 message(s) / whole in the log: 4"
fact="sent: 534 bytes with 2 message(s),22 bytes with 1 message(s) / whole in the log: 4"
printf '%s\n' "expected (the guess): $guess" "seen:                 $seen"
[ "$seen" = "$fact" ] || { echo "The behavior has changed."; exit 1; }
