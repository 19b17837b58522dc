#!/bin/bash
# Most would guess that holding the space bar on a focused ttk.Button may press
# it again and again, but leaves the rest of the program running. In fact each
# key press sleeps for 100 milliseconds inside Tk and serves no events. A
# keyboard repeats faster than that, so "after" callbacks stop for as long as
# the key is held, and longer. The classic tkinter.Button does not sleep. It
# matters for a program that polls a socket with after(20): its network traffic
# stops. Seen with Tk 8.6.13 on X11, Debian 12 (xdotool 3.20160805.1-5).
set -eu; d=$(mktemp -d); x=; new=; py=python3
bye() { set +e
  [ -z "$x" ] || { kill "$x"; wait "$x"; } 2>/dev/null
  [ -z "$new" ] || apt-get purge -y -qq $new >/dev/null 2>&1
  rm -rf "$d"; }
trap bye EXIT
for p in xvfb libxdo3 xdotool; do dpkg -s $p >/dev/null 2>&1 || new="$new $p"; done
[ -z "$new" ] || apt-get install -y -qq -o DPkg::Lock::Timeout=300 $new >"$d/log" 2>&1
v=$(python3 -c "import tkinter; print(tkinter.Tcl().eval('info patchlevel'))") ||
  { echo "This python3 has no tkinter."; exit 1; }
[ "$v" = 8.6.13 ] || { echo "Tk is $v here; seen with version 8.6.13."; exit 1; }
Xvfb -displayfd 3 -noreset -screen 0 800x600x24 3>"$d/n" >/dev/null 2>&1 & x=$!
for i in $(seq 100); do [ -s "$d/n" ] && break; sleep 0.1; done
export DISPLAY=:$(cat "$d/n")
cat >"$d/t.py" <<'END'
import subprocess, sys, time, tkinter as tk
from tkinter import ttk
def hold(kind):
    root, count = tk.Tk(), [0]
    def command():
        count[0] += 1
    button = kind(root, text="Send", command=command)
    button.pack()
    root.update()
    button.focus_force()
    gaps, last = [], [time.monotonic()]
    def tick():
        now = time.monotonic()
        gaps.append(now - last[0])
        last[0] = now
        timer[0] = root.after(20, tick)
    timer = [root.after(20, tick)]
    keys = "xdotool keydown space; sleep 1.5; xdotool keyup space"
    root.after(300, lambda: subprocess.Popen(keys, shell=True))
    root.after(4000, lambda: (root.after_cancel(timer[0]), root.destroy()))
    root.mainloop()
    return count[0], round(max(gaps), 2)
(n1, gap1), (n2, gap2) = hold(tk.Button), hold(ttk.Button)
guess = "a 20 ms timer keeps running with both kinds of button"
seen = (f"tkinter.Button: {n1} commands, longest pause {gap1} s; "
        f"ttk.Button: {n2} commands, longest pause {gap2} s")
ok = n1 > 3 and gap1 < 0.5 and n2 > 3 and gap2 > 1
print(f"expected (the guess): {guess}\nseen: {seen}")
sys.exit(None if ok else "This has changed: the surprise was not seen.")
END
timeout -k 5 45 "$py" "$d/t.py"
