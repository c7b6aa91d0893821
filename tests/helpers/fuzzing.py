"""Campaigns of inputs that are changed by chance. Each is read in a forked process with little memory and time."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

HANG = 10
"""Seconds of computing that reading one input may take; of waiting, six times as many."""

MEMORY = 2 * 2**30
"""Bytes that may be asked for beyond those that a process has before it reads."""

OUT = "out"
"""The one folder, in that of an input, which its reader may write to."""

READ, REFUSED = "read", "refused"
"""What becomes of an input. Anything else is wrong."""

NO_MEMORY = re.compile(r"MemoryError|[Ii]nsufficient memory|can(no|')t allocate|Unable to allocate|Out of memory")
"""How a library says that it has asked for too much. A reader may take this for a fault of the file."""

BATCH = 500
"""Inputs that one process reads."""

_NOTE, _RESULTS = 1000, 1001  # descriptors


def campaign(
    folder: Path,
    make: Callable[[int, Path], str],
    read: Callable[[Path, str], str],
    seconds: float,
    begin: int = 0,
    inputs: int = 10**9,
) -> tuple[Counter[tuple[str, str]], dict[int, str]]:
    """Inputs of seeds from ``begin`` on, until the time is over or that many are read.

    The seed is written down before each one, so that an input that ends the process is known.

    Args:
        make: writes the input of a seed into an empty folder, and returns its form.
        read: reads the input of such a form, and returns ``READ``, ``REFUSED`` or what is wrong. The folder is the
            current one, the home and that of temporary files.

    Returns:
        counts of (form, ``READ`` or ``REFUSED`` or "wrong"); and what was wrong, by seed.
    """
    until, stop = time.monotonic() + seconds, begin + inputs
    counts: Counter[tuple[str, str]] = Counter()
    wrong: dict[int, str] = {}
    note, results = folder / "note", folder / "results"
    while time.monotonic() < until and begin < stop:
        note.write_bytes(b"")
        results.write_bytes(b"")
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(note, os.O_WRONLY), _NOTE)
            os.dup2(os.open(results, os.O_WRONLY | os.O_APPEND), _RESULTS)
            try:
                _child(begin, min(begin + BATCH, stop), until, folder / "place", make, read)
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        last = int(note.read_text().strip() or begin)
        for line in results.read_text().splitlines():
            seed, form, result = json.loads(line)
            counts[form, result if result in (READ, REFUSED) else "wrong"] += 1
            if result not in (READ, REFUSED):
                wrong[seed] = result
        if os.WIFSIGNALED(status):
            wrong[last] = f"ended by signal {os.WTERMSIG(status)}"
        elif os.WEXITSTATUS(status):
            wrong[last] = f"ended with {os.WEXITSTATUS(status)}"
        begin = last + 1
    return counts, wrong


def _child(
    begin: int, stop: int, until: float, place: Path, make: Callable[[int, Path], str], read: Callable[[Path, str], str]
) -> None:
    """Read inputs one after another; say which one before each, and what is wrong with it after."""
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
    os.environ.update(TMPDIR=str(place), HOME=str(place))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{place}_of_torch"  # it makes one when it is imported
    tempfile.tempdir = None
    for seed in range(begin, stop):
        if time.monotonic() > until:
            break
        os.pwrite(_NOTE, b"%-20d" % seed, 0)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        os.chdir(place)
        form = make(seed, place)
        before = files_in(place)
        signal.setitimer(signal.ITIMER_PROF, HANG)
        signal.alarm(6 * HANG)
        result = read(place, form)
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if changed := {name for name, _ in before ^ files_in(place)}:
            result = f"{result}; files outside of the output folder: {sorted(changed)}"
        os.write(_RESULTS, json.dumps([seed, form, result]).encode() + b"\n")
    os._exit(0)


def files_in(place: Path) -> set[tuple[str, tuple[int, ...]]]:
    """The files and folders in a folder, except for those of ``OUT``; of each its kind, size and time."""
    found = set()
    for inside, folders, names in os.walk(place):
        if Path(inside) == place and OUT in folders:
            folders.remove(OUT)
        for name in (*folders, *names):
            path = Path(inside, name)
            state = path.lstat()
            about = () if path.is_dir() else (state.st_ino, state.st_size, state.st_mtime_ns)
            found.add((str(path.relative_to(place)), (state.st_mode, *about)))
    return found


def refusal(message: str, most: int = 1) -> str:
    """``REFUSED`` for a message of so many lines, none of which says that memory was asked for in vain."""
    if NO_MEMORY.search(message):
        return f"too much memory: {message}"
    return REFUSED if 1 <= len(message.strip().splitlines()) <= most else f"many lines or none: {message!r}"
