"""Somebody at work on a tree: saves, writes, deletes and renames files, and says what is to be there in the end.

usage: hands.py SIDE SEED STEPS PAUSE_MS ROOT [SOURCE...]

What is written says who wrote it, in its first line, in its last one and in between, so that a mixture is
seen. In `notes/SIDE` nobody else works; in `notes/both` the other side does, too; to the SOURCE files a line
is added that `look.py` takes away again. What others may read or change at the same time is saved by a rename.
"""

import json
import os
import random
import sys
import time

side, seed, steps, pause, root = sys.argv[1:6]
sources = sys.argv[6:]
dice = random.Random(f"{side} {seed}")
os.chdir(root)
own = f"notes/{side}"
os.makedirs(own, exist_ok=True)
there = {}
number = 0


def note():
    global number
    number += 1
    lines = dice.choice([0, 3, 40, 2000])
    middle = "".join(f"{side} {number} {line}\n" for line in range(lines))
    return f"by {side} {number} {lines}\n{middle}end {side} {number}\n"


def save(path, text):
    beside = f"{path}.{side}~"
    with open(beside, "w", encoding="utf-8", newline="", errors="surrogateescape") as file:
        file.write(text)
    if os.path.exists(path):
        os.chmod(beside, os.stat(path).st_mode & 0o777)
    os.rename(beside, path)


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def fresh():
    folder = dice.choice(["", "/a", "/a/b", "/c d", "/\u00e9"])
    os.makedirs(own + folder, exist_ok=True)
    return f"{own}{folder}/{dice.randrange(30)}"


def step():
    kind = dice.choice(["save", "write", "delete", "rename", "both", "both", "source"])
    path = fresh()
    if kind in ("save", "write"):
        text = note()
        (save if kind == "save" else write)(path, text)
        there[path] = f"{side} {number}"
    elif kind == "delete" and there:
        path = dice.choice(sorted(there))
        os.remove(path)
        del there[path]
    elif kind == "rename" and there:
        old = dice.choice(sorted(there))
        os.rename(old, path)
        there[path] = there.pop(old)
    elif kind == "both":
        save(f"notes/both/{dice.randrange(6)}", note())
    elif kind == "source" and sources:
        path = dice.choice(sources)
        with open(path, encoding="utf-8", newline="", errors="surrogateescape") as file:
            text = file.read()
        text += "" if text.endswith("\n") else "\n"
        says = f"sandbox-hands {side} {number}"
        save(path, text + (f"# {says}\n" if path.endswith(".py") else f"/* {says} */\n"))


for _ in range(int(steps)):
    step()
    time.sleep(dice.random() * int(pause) / 1000)
print(json.dumps({"number": number, "there": there}))
