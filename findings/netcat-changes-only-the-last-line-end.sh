#!/bin/bash
# Guess: "nc -C" of netcat-traditional ends every line that it sends with CR LF.  Its manual says
# "Send CRLF as line-ending", and typed lines do arrive this way.
# Fact: it changes only the last line feed of each block that it reads.  Three lines that come at once
# from a file or a pipe leave as LF, LF, CR LF.  netcat-openbsd with -C changes all three.
# Why it matters: a strict server sees one long line.  A test by hand at the keyboard passes, and the
# same lines from a file fail.  Both programs answer to the name nc.
# Seen with Debian's netcat-traditional 1.10-47 and netcat-openbsd 1.219-1.
set -eu
port=21711
dir=$(mktemp -d); chmod 755 "$dir"
trap 'rm -rf "$dir"' EXIT
cd "$dir"
for want in netcat-traditional=1.10-47 netcat-openbsd=1.219-1; do
    apt-get download "${want%%=*}" >/dev/null 2>&1 || { echo "No download of ${want%%=*}."; exit 1; }
    have=$(dpkg-deb -f "${want%%=*}"_*.deb Version)
    if [ "$have" != "${want#*=}" ]; then
        echo "This was seen with $want.  The archive now has $have."; exit 1
    fi
    dpkg-deb -x "${want%%=*}"_*.deb .
done
cat > server.py <<'END'
# Print what the first client sends until it ends.
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    server.settimeout(10)
    print("ready", flush=True)
    client = server.accept()[0]
    client.settimeout(10)
    data = b""
    while part := client.recv(4096):
        data += part
print(data)
END
send() {  # send PORT COMMAND...: pipe three lines into the command at once
    local at=$1; shift
    python3 server.py "$at" > seen.txt &
    local server=$! i
    for i in $(seq 100); do grep -q ready seen.txt && break; sleep 0.1; done
    printf 'one\ntwo\nthree\n' | timeout 8 "$@" 127.0.0.1 "$at" || true
    wait "$server"
    tail -n 1 seen.txt
}
traditional=$(send "$port" ./bin/nc.traditional -C -q 1)
openbsd=$(send $((port + 1)) ./bin/nc.openbsd -C -N)
echo "expected (the guess): traditional b'one\r\ntwo\r\nthree\r\n' openbsd b'one\r\ntwo\r\nthree\r\n'"
echo "seen:                 traditional $traditional openbsd $openbsd"
if [ "$traditional" != "b'one\ntwo\nthree\r\n'" ] || [ "$openbsd" != "b'one\r\ntwo\r\nthree\r\n'" ]; then
    echo "The behavior has changed."; exit 1
fi
