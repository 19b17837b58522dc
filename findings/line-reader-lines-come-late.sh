#!/bin/bash
# Guess: the npm package line-reader hands over each line of a stream when
# the line has arrived, as readline does.  Its manual offers any readable stream.
# What happens: line-reader asks the stream for 1024 bytes at a time.  On a
# socket or on stdin nothing at all comes out until 1024 bytes are there or the
# stream ends.  With bufferSize 1 a line still waits for the byte after it, and
# then comes the next fault: lines are late by one.
# Why it matters: a chat server with it passes a test that sends a file and
# closes, and is mute in a conversation.
# Seen with line-reader 0.4.0, Node.js 20.20.2.
set -eu
d=$(mktemp -d)
trap 'rm -rf "$d"' EXIT
cd "$d"
npm install --silent --no-audit --no-fund --no-save line-reader@0.4.0 >log 2>&1 || { cat log; exit 1; }
cat > echo.js <<'J'
const net = require('net');
const kind = process.argv[2]; setTimeout(process.exit, 30000);
net.createServer((socket) => {
  socket.on('error', () => {});
  const answer = (line) => { if (socket.writable) socket.write('got ' + line + '\n'); };
  if (kind === 'readline') {
    require('readline').createInterface({input: socket}).on('line', answer);
  } else {
    const options = kind === 'default' ? {} : {bufferSize: 1};
    require('line-reader').eachLine(socket, options, answer);
  }
}).listen(Number(process.argv[3]), '127.0.0.1', () => console.log('ready'));
J
cat > look.py <<'P'
import socket, subprocess, sys
def answers(client, seconds):
    got = b""
    client.settimeout(seconds)
    try:
        while part := client.recv(4096):
            got += part
    except TimeoutError:
        pass
    return got.decode().splitlines()
def run(kind, port):
    server = subprocess.Popen(["node", "echo.js", kind, str(port)], stdout=subprocess.PIPE)
    server.stdout.readline()
    with socket.create_connection(("127.0.0.1", port)) as client:
        result = []
        for line in b"one\n", b"two\n", b"x" * 1100 + b"\n":
            client.sendall(line)
            result.append([text[:7] for text in answers(client, 0.7)])
    server.terminate()
    server.wait(10)
    return result
seen = {kind: run(kind, 23480 + n) for n, kind in enumerate(["readline", "default", "bufferSize 1"])}
print("answers after 'one', after 'two', after 1100 times 'x'")
for kind, result in seen.items():
    print("%s %s: %s" % ("expected (the guess)," if kind == "readline" else "seen, line-reader,", kind, result))
if list(seen.values()) != [[["got one"], ["got two"], ["got xxx"]], [[], [], ["got one", "got two"]],
                           [[], ["got one"], ["got two"]]]:
    sys.exit("This has changed: line-reader hands lines over at another time.")
P
/usr/bin/python3 look.py
