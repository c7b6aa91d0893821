"""One training at a time in a work dir."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from mmengine.logging import print_log

from mm_vitbackbones.errors import UserError

NAME = ".lock"
"""The file that is locked."""

RANKS = {"slurm": "SLURM_PROCID", "mpi": "OMPI_COMM_WORLD_RANK"}
"""The variables in which these launchers say which process of a run this is."""


@contextlib.contextmanager
def work_dir_lock(work_dir: Path, launcher: str) -> Iterator[None]:
    """Hold a work dir for one training. The first process of a distributed run does so for all.

    The system takes the lock from a process that ends, in whatever way. Workers of dataloaders do not inherit it.

    Args:
        launcher: how the processes of the run were started.

    Raises:
        UserError: another training holds it, or the folder cannot be written to.
    """
    if os.environ.get(RANKS.get(launcher, "RANK"), "0") != "0":
        yield
        return
    path = work_dir / NAME
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
    except OSError as error:
        raise UserError(
            f"the work dir {work_dir} cannot be written to: {error.strerror}; name another by --work-dir"
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(file)


def _locked(path: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.read(file, 200).decode(errors="replace").strip()
            os.close(file)
            raise UserError(
                f"another training runs in {path.parent}{f' ({holder})' if holder else ''}: wait for its end, or name "
                "another folder by --work-dir"
            ) from None
        except OSError as error:  # a network disk without locks
            print_log(
                f"{path.parent} cannot be locked ({error.strerror}): start no other training there", logger="current"
            )
            return file
        with contextlib.suppress(FileNotFoundError):  # the one before has just removed it
            if os.stat(path).st_ino == os.fstat(file).st_ino:
                break
        os.close(file)
    os.ftruncate(file, 0)
    os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return file
