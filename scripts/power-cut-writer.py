#!/usr/bin/env python3
"""The part of scripts/power-cut that runs inside the guest: writes files and says what was acknowledged, or, after the
power has gone, holds what is there against what was said.

usage: power-cut-writer.py write ROOT DIR SEED THREADS sync|nosync [PACKS_LOCAL PACKS_EXTERNAL]
       power-cut-writer.py verify ROOT LEDGER

Every line for the host is `PC <crc32> <json>`, one write() to the console, so that a line cut short is known as one. `b` announces a change before its first system
call, `a` follows the return of the call that made it durable. So whatever the moment of the cut: an announced change may or
may not be there, an acknowledged one must be. `nosync` acknowledges without asking for durability: with it the test must
fail, which is how we know that it can.
"""
import hashlib
import json
import mmap
import os
import random
import sys
import threading
import time
import traceback
import zlib

out_lock = threading.Lock()


def tell(**event):
    text = json.dumps(event, separators=(",", ":"))
    with out_lock:
        os.write(1, ("PC %08x %s\n" % (zlib.crc32(text.encode()), text)).encode())


def sha(content):
    return hashlib.sha256(content).hexdigest()


class Writer(threading.Thread):
    """One thread, one directory: a path is touched by one thread only, so its events have an order."""

    def __init__(self, root, directory, seed, durable):
        super().__init__()
        self.root, self.dir, self.durable = root, directory, durable
        self.random = random.Random(seed)
        self.count = 0
        self.recent = []
        self.live = []
        self.logs = {}
        self.sub = directory

    def full(self, path):
        return os.path.join(self.root, path)

    def fsync(self, fd):
        if self.durable:
            os.fsync(fd)

    def fsync_dir(self, path):
        fd = os.open(self.full(path), os.O_RDONLY | os.O_DIRECTORY)
        self.fsync(fd)
        os.close(fd)

    def content(self):
        r = self.random
        if self.recent and r.random() < 0.15:  # seen before: deduplicated, and still durable
            return r.choice(self.recent)
        size = r.choices([r.randrange(1, 16 << 10), r.randrange(1, 200 << 10), r.randrange(1, 2 << 20)], [70, 25, 5])[0]
        half = r.randbytes(size // 2)
        made = half + (b"%d the quick brown fox " % r.randrange(1000)) * ((size - len(half)) // 20 + 1)
        self.recent = (self.recent + [made])[-8:]
        return made

    def put(self, path, content, how):
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
        if self.durable:
            flags |= {"O_SYNC": os.O_SYNC, "O_DSYNC": os.O_DSYNC}.get(how, 0)
        fd = os.open(self.full(path), flags, 0o644)
        try:
            if how == "mmap":
                os.ftruncate(fd, len(content))
                with mmap.mmap(fd, len(content)) as mapped:
                    mapped[:] = content
                    if self.durable:
                        mapped.flush()
                self.fsync(fd)  # the new size; msync itself promises only the bytes
            else:
                view = memoryview(content)
                while view:
                    view = view[os.write(fd, view[:self.random.choice((4096, 65536, 1 << 20))]):]
                if how == "fsync":
                    self.fsync(fd)
                elif how == "fdatasync" and self.durable:
                    os.fdatasync(fd)
        finally:
            os.close(fd)

    def create(self):
        path, content = "%s/f%05d" % (self.sub, self.count), self.content()
        how = self.random.choice(("fsync", "fsync", "fdatasync", "O_SYNC", "O_DSYNC", "mmap"))
        event = dict(op="create", p=path, n=len(content), sha=sha(content), how=how)
        tell(k="b", **event)
        self.put(path, content, how)
        tell(k="a", **event)
        self.live.append(path)

    def replace(self):
        path, content = "%s/slot%d" % (self.dir, self.random.randrange(3)), self.content()
        event = dict(op="replace", p=path, n=len(content), sha=sha(content))
        tell(k="b", **event)
        self.put(path + ".tmp", content, "fsync")
        os.rename(self.full(path + ".tmp"), self.full(path))
        self.fsync_dir(self.dir)
        tell(k="a", **event)

    def append(self):
        path = "%s/log%d" % (self.dir, self.random.randrange(2))
        old = self.logs.get(path, b"")
        new = old + self.content()[:40000]
        self.logs[path] = new
        event = dict(op="append", p=path, n=len(new), sha=sha(new))
        tell(k="b", **event)
        fd = os.open(self.full(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(fd, new[len(old):])
        self.fsync(fd)
        os.close(fd)
        tell(k="a", **event)

    def delete(self):
        if len(self.live) < 10:
            return self.create()
        path = self.live.pop(self.random.randrange(len(self.live)))
        tell(k="b", op="delete", p=path)
        os.unlink(self.full(path))
        self.fsync_dir(os.path.dirname(path))
        tell(k="a", op="delete", p=path)

    def loose(self):
        """Never synced and never acknowledged: what a cut may take, and what proves that it takes something."""
        path, content = "%s/loose%05d" % (self.dir, self.count), self.content()
        tell(k="b", op="loose", p=path, n=len(content), sha=sha(content))
        with open(self.full(path), "wb") as f:
            f.write(content)

    def enter(self):
        self.sub = "%s/d%05d" % (self.dir, self.count)
        os.mkdir(self.full(self.sub))

    def run(self):
        try:
            os.makedirs(self.full(self.dir))
            while True:
                self.count += 1
                self.random.choices((self.create, self.replace, self.append, self.delete, self.loose, self.enter),
                                    (50, 15, 15, 7, 8, 5))[0]()
        except Exception as e:  # the host must hear of it: silence would look like a short round
            where = traceback.extract_tb(e.__traceback__)[-1]
            tell(k="error", what="%s: %r in %s (line %d)" % (self.dir, e, where.name, where.lineno))


def pack_names(root):
    return {name for _, _, names in os.walk(os.path.join(root, "items")) for name in names if name.endswith(".pack")}


def write(root, directory, seed, threads, durable, stores):
    for t in range(threads):
        Writer(root, "%s/w%d" % (directory, t), "%s-%d" % (seed, t), durable).start()
    tell(k="go")
    while stores:  # what the engine has not sent yet, counted from outside
        local, external = pack_names(stores[0]), pack_names(stores[1])
        tell(k="packs", local=len(local), external=len(external), unsent=len(local - external))
        time.sleep(0.3)


def expectations(ledger):
    """path -> (acknowledged state or None, [states announced since]); a state is an event."""
    paths = {}
    for line in open(ledger):
        event = json.loads(line)
        if event["k"] == "b":
            paths.setdefault(event["p"], [None, []])[1].append(event)
        elif event["k"] == "a":
            paths[event["p"]] = [event, []]
        elif event["k"] == "gone":
            for path in [p for p in paths if p.startswith(event["p"] + "/")]:
                del paths[path]
            paths[event["p"]] = [dict(op="delete", p=event["p"]), []]
        elif event["k"] == "going":  # announced, not acknowledged: nothing can be said about what is below
            for path in [p for p in paths if p.startswith(event["p"] + "/")]:
                del paths[path]
    return paths


def fits(found, state):
    if state is None or state["op"] == "delete":
        return found is None
    if found is None:
        return False
    if state["op"] == "append":
        return len(found) >= state["n"] and sha(found[:state["n"]]) == state["sha"]
    return len(found) == state["n"] and sha(found) == state["sha"]


def verify(root, ledger):
    wrong, checked, kept, lost = [], 0, 0, 0
    for path, (acked, pending) in sorted(expectations(ledger).items()):
        full = os.path.join(root, path)
        try:
            found = None
            if os.path.lexists(full):
                found = b"" if os.path.isdir(full) else open(full, "rb").read()
        except OSError as e:
            wrong.append("%s: cannot be read: %s" % (path, e))
            checked += 1
            continue
        if pending:
            if fits(found, pending[-1]):
                kept += 1
            else:
                lost += 1
        if acked is None:
            # A rename of a whole file is whole even unsynced; a file being created may be any part of itself.
            if pending[-1]["op"] == "replace" and found is not None and not any(fits(found, s) for s in pending):
                wrong.append("%s: replaced by rename, but is neither absent nor whole" % path)
            continue
        checked += 1
        # An append since leaves the acknowledged bytes in front, which is what `fits` asks of an append.
        if not any(fits(found, s) for s in [acked] + pending):
            state = "absent" if found is None else "%d bytes, sha256 %s" % (len(found), sha(found)[:12])
            wrong.append("%s: acknowledged as %s, found %s" % (
                path, "deleted" if acked["op"] == "delete" else
                "%s by %s of %d bytes, sha256 %s" % (acked["op"], acked.get("how", "fsync"), acked["n"], acked["sha"][:12]), state))
    for complaint in wrong[:20]:
        tell(k="wrong", what=complaint)
    tell(k="report", checked=checked, wrong=len(wrong), pending_kept=kept, pending_lost=lost)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        root, directory, seed, threads, mode = sys.argv[2:7]
        write(root, directory, seed, int(threads), mode == "sync", sys.argv[7:9])
    else:
        verify(sys.argv[2], sys.argv[3])
