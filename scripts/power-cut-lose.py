#!/usr/bin/env python3
"""Takes from a disk image what a power cut may take: writes that the guest never flushed (see uml-disk-cache.c).

usage: power-cut-lose.py IMAGE SEED

The seed decides, by turns: everything since the last flush is gone, or, for every block, some of its newest writes are, as
of a cache that wrote back in an order of its own. Prints how many blocks went back. A block is 4096 bytes, written whole.
"""
import os
import random
import struct
import sys

BLOCK = 4096
image, choice = sys.argv[1], random.Random(sys.argv[2])
undo = image + ".undo"
log = open(undo, "rb").read() if os.path.exists(undo) else b""

older = {}  # start of block -> what it held before each unflushed write, the oldest first
at = 0
while at + 16 <= len(log):
    offset, length = struct.unpack_from("<QQ", log, at)
    if at + 16 + length > len(log):
        break  # the cut came before this write began
    for start in range(0, length, BLOCK):
        # Smaller or unaligned writes do not happen on a guest's ext4; if they do, they are blocks of their own.
        piece = log[at + 16 + start:at + 16 + min(start + BLOCK, length)]
        older.setdefault((offset + start, len(piece)), []).append(piece)
    at += 16 + length

everything = choice.random() < 0.5
gone = 0
with open(image, "r+b") as f:
    for (start, _), contents in older.items():
        keep = 0 if everything else choice.randrange(len(contents) + 1)
        if keep < len(contents):
            gone += 1
            f.seek(start)
            f.write(contents[keep])
if os.path.exists(undo):
    os.truncate(undo, 0)
print("%d of %d unflushed blocks%s" % (gone, len(older), "" if older else " (everything had been flushed)"))
