#!/bin/bash
# Guess: socket.create_connection((host, port)) refuses a port above 65535,
# as socket.connect() does with OverflowError.
# What happens: create_connection() hands the number to the C library's
# getaddrinfo().  The GNU C library keeps only the low 16 bits.  Port
# 88967 connects to port 23431 without a word.  asyncio.open_connection()
# does the same for a host name, but refuses the same port for an address.
# Why it matters: a typing error in "--port" reaches another service, and the
# program reports the port that was asked for.  Check the range yourself.
# Seen with Python 3.8.18, 3.11.2 and 3.13.0, GNU C library 2.36.
set -eu
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
cat > "$d/look.py" <<'P'
import asyncio, socket, sys
PORT = 23431
WRONG = PORT + 65536
server = socket.create_server(("127.0.0.1", PORT))
server.settimeout(5)

def connect(address):
    with socket.socket() as client:
        client.settimeout(5)
        client.connect(address)
        return client.getpeername()[1]

def create_connection(address):
    with socket.create_connection(address, timeout=5) as client:
        return client.getpeername()[1]

def open_connection(address):
    async def run():
        reader, writer = await asyncio.wait_for(asyncio.open_connection(*address), 5)
        port = writer.get_extra_info("peername")[1]
        writer.close()
        return port
    return asyncio.run(run())

seen = []
for function in connect, create_connection, open_connection:
    for host in "127.0.0.1", "localhost":
        try:
            result = function((host, WRONG))
        except Exception as error:
            result = type(error).__name__
        seen.append(result)
        print("Python %s: %s((%r, %d)): expected (the guess): OverflowError, seen: %s"
              % (sys.version.split()[0], function.__name__, host, WRONG, result))
if seen != ["OverflowError", "OverflowError", PORT, PORT, "OverflowError", PORT]:
    sys.exit("This has changed: the port number is checked in another way.")
P
for python in ${PYTHONS:-/usr/bin/python3}; do
    "$python" "$d/look.py"
done
