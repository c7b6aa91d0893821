"""A process that holds a work dir, as a training does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAM = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write("process 7 on there")
file.flush()
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def held(work_dir: Path) -> Iterator[None]:
    """Within it, a process holds the work dir. Then it is killed."""
    command = [sys.executable, "-I", "-S", "-c", PROGRAM, str(work_dir / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            process.kill()
