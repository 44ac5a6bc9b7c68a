#!/usr/bin/env python3
"""The part of scripts/nfs-outage that uses the mount: threads that write with fsync, stat, list and read back, each
call timed; and the comparison of what is there with what was acknowledged.

usage: nfs-outage-load.py load ROOT DIR LEDGER
       nfs-outage-load.py one ROOT PATH LEDGER
       nfs-outage-load.py verify ROOT LEDGER

`load` reads lines: `phase NAME LIMIT_MS` begins a phase, in which no call may take longer than the limit, also none that
has not returned at its end; `stop` ends the work and adds to the ledger, one JSON object: path -> [length, SHA-256] of
every file whose fsync (and, for a replaced one, its directory's) has returned. It answers each line when it is done, with
the figures of the phase that ended, and leaves with status 1 when something failed or took too long. `one` writes a
single file.

`verify` prints what is wrong, one line each, then `N files, M wrong`; status 1 if M is not 0.
"""
import faulthandler
import hashlib
import json
import os
import random
import signal
import sys
import threading
import time

WRITERS = 2
DIR_LEN = 100
PAUSE_SECS = 0.02
KINDS = ("write+fsync", "stat", "ls", "read")


def sha(content):
    return hashlib.sha256(content).hexdigest()


def put(full, content, replaces):
    with open(full + ".tmp" if replaces else full, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if replaces:
        os.rename(full + ".tmp", full)
        fd = os.open(os.path.dirname(full), os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        os.close(fd)


def add_to(ledger, entries):
    known = json.load(open(ledger)) if os.path.exists(ledger) else {}
    with open(ledger, "w") as file:
        json.dump({**known, **entries}, file)


class Phase:
    def __init__(self, name, limit_ms):
        self.name, self.limit_ms, self.started = name, limit_ms, time.monotonic()
        self.took = {kind: [] for kind in KINDS}

    def figures(self):
        words = []
        for kind in KINDS:
            took = sorted(self.took[kind]) or [0]
            at = lambda part: took[min(len(took) - 1, int(len(took) * part))]
            words.append("%s %.1f/%.1f/%.0f (%d)" % (kind, at(0.5), at(0.99), took[-1], len(self.took[kind])))
        return "%-18s %3d s  %s" % (self.name, time.monotonic() - self.started, "  ".join(words))


class Load:
    def __init__(self, root, top):
        self.root, self.top = root, top
        os.mkdir(os.path.join(root, top))
        self.lock = threading.Lock()
        self.ledger = {}
        self.recent = []
        self.failures = []
        self.stopping = False
        self.phase = Phase("start", 60000)
        self.running = {}  # thread -> (kind, since)
        works = [(self.write, number) for number in range(WRITERS)] + [(self.stat, 0), (self.ls, 0), (self.read, 0)]
        # One that hangs must not keep us from saying so.
        self.threads = [threading.Thread(target=self.guarded, args=args, daemon=True) for args in works]
        for thread in self.threads:
            thread.start()

    def guarded(self, work, number):
        # Of its own for each run: what was written before is known, and would need no pack.
        draw = random.Random("%s-%s-%d" % (self.top, work.__name__, number))
        step = 0
        try:
            while not self.stopping:
                work(draw, number, step)
                step += 1
                time.sleep(PAUSE_SECS)
        except Exception as error:
            print("the load's %s ended: %r" % (work.__name__, error), file=sys.stderr, flush=True)
            with self.lock:
                self.failures.append("%s: %r" % (work.__name__, error))

    def timed(self, kind, call):
        started = time.monotonic()
        with self.lock:
            self.running[threading.get_ident()] = (kind, started)
        outcome = call()
        with self.lock:
            del self.running[threading.get_ident()]
            # It counts for the phase in which it ended: one that waited for the end of an outage is one of its own.
            self.phase.took[kind].append((time.monotonic() - started) * 1000)
            self.slow(self.phase, kind, started)
        return outcome

    def slow(self, phase, kind, started):
        waited_ms = (time.monotonic() - max(started, phase.started)) * 1000
        if waited_ms > phase.limit_ms:
            self.failures.append("%s: a %s took %.0f ms, more than %d" % (phase.name, kind, waited_ms, phase.limit_ms))

    def write(self, draw, number, step):
        content = draw.randbytes(draw.randrange(1 << 10, 200 << 10))
        directory = "%s/w%d-%04d" % (self.top, number, step // DIR_LEN)
        if step % DIR_LEN == 0:
            os.mkdir(os.path.join(self.root, directory))
        is_slot = step % 10 == 9
        path = "%s/slot%d" % (self.top, number) if is_slot else "%s/f%06d" % (directory, step)
        self.timed("write+fsync", lambda: put(os.path.join(self.root, path), content, is_slot))
        with self.lock:
            self.ledger[path] = [len(content), sha(content)]
            if not is_slot:  # which is replaced while it is read
                self.recent = (self.recent + [path])[-200:]

    def pick(self, draw):
        with self.lock:
            return draw.choice(self.recent) if self.recent else None

    def stat(self, draw, _number, _step):
        path = self.pick(draw)
        if path:
            found = self.timed("stat", lambda: os.stat(os.path.join(self.root, path)))
            if found.st_size != self.ledger[path][0]:
                raise ValueError("%s has %d bytes" % (path, found.st_size))

    def ls(self, draw, _number, _step):
        path = self.pick(draw)
        if path:
            names = self.timed("ls", lambda: os.listdir(os.path.join(self.root, os.path.dirname(path))))
            if os.path.basename(path) not in names:
                raise ValueError("%s is not listed" % path)

    def read(self, draw, _number, _step):
        path = self.pick(draw)
        if path:
            content = self.timed("read", lambda: open(os.path.join(self.root, path), "rb").read())
            if sha(content) != self.ledger[path][1]:
                raise ValueError("%s reads otherwise than it was written" % path)

    def begin(self, name, limit_ms):
        with self.lock:
            ended, self.phase = self.phase, Phase(name, limit_ms)
            for kind, started in self.running.values():
                self.slow(ended, kind, started)
            return ended.figures()

    def stop(self):
        self.stopping = True
        for thread in self.threads:
            thread.join(60)
            if thread.is_alive():
                self.failures.append("a call has not returned a minute after the end")


def load(root, top, ledger):
    work = Load(root, top)
    for line in sys.stdin:
        words = line.split()
        if words[0] == "stop":
            work.stop()
            print(work.begin("end", 0), flush=True)
            add_to(ledger, work.ledger)
            break
        print(work.begin(words[1], int(words[2])), flush=True)
        if work.failures:
            work.stop()
            break
    for failure in work.failures[:20]:
        print("FAILURE %s" % failure, flush=True)
    return 1 if work.failures else 0


def one(root, path, ledger):
    content = os.urandom(100000)
    put(os.path.join(root, path), content, False)
    add_to(ledger, {path: [len(content), sha(content)]})
    return 0


def verify(root, ledger):
    expected, wrong = json.load(open(ledger)), 0
    for path, (length, digest) in sorted(expected.items()):
        try:
            content = open(os.path.join(root, path), "rb").read()
        except OSError as error:
            fault = "absent" if isinstance(error, FileNotFoundError) else "cannot be read: %s" % error
        else:
            if len(content) == length and sha(content) == digest:
                continue
            fault = "differs: %d bytes, acknowledged were %d" % (len(content), length)
        wrong += 1
        if wrong <= 20:
            print("%s: %s" % (path, fault))
    print("%d files, %d wrong" % (len(expected), wrong))
    return 1 if wrong or not expected else 0


if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1)
    sys.exit({"load": load, "one": one, "verify": verify}[sys.argv[1]](*sys.argv[2:]))
