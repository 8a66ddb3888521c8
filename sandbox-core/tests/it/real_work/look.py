"""Says what a tree holds, one JSON object for each path.

usage: look.py ROOT

`plain` is the digest without the lines that `hands.py` adds; `note` says which of its notes a file is, whole, or that
it is none.
"""

import hashlib
import json
import os
import re
import stat
import sys

root = sys.argv[1]
added = re.compile(rb"(/\*|#) sandbox-hands [a-z]+ [0-9]+( \*/)?\n")


def note(data):
    said = re.match(rb"by ([a-z]+) ([0-9]+) ([0-9]+)\n", data)
    if not said:
        return "torn"
    side, number, lines = said[1].decode(), int(said[2]), int(said[3])
    middle = "".join(f"{side} {number} {line}\n" for line in range(lines))
    whole = f"by {side} {number} {lines}\n{middle}end {side} {number}\n"
    return f"{side} {number}" if data == whole.encode() else "torn"


def say(path, **what):
    print(json.dumps({"path": os.path.relpath(path, root), **what}))


for folder, folders, files in os.walk(root):
    for name in folders + files:
        path = os.path.join(folder, name)
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            say(path, kind="link", digest=os.readlink(path))
        elif stat.S_ISDIR(mode):
            say(path, kind="folder", digest="")
        elif stat.S_ISREG(mode):
            with open(path, "rb") as file:
                data = file.read()
            plain = added.sub(b"", data)
            plain = hashlib.sha256(plain.rstrip(b"\n")).hexdigest()
            is_note = "/notes/" in path
            say(
                path,
                kind="program" if mode & 0o100 else "file",
                digest=hashlib.sha256(data).hexdigest(),
                plain=plain,
                note=note(data) if is_note else "",
            )
        else:
            say(path, kind="special", digest="")
