"""Runs that are asked to stop: signals that wait for the end of an iteration, and going on within an epoch."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""Slurm, Kubernetes and torchrun send the first one before they kill, Ctrl-C is the second."""

TWICE = 2.0
"""Seconds within which signals of one Ctrl-C arrive under torchrun: from the terminal, and from torchrun itself."""


class Stops:
    """Keeps the first ``SIGTERM`` or ``SIGINT`` until the run looks at it. A second one ends the process at once."""

    def __init__(self) -> None:
        self.number = 0
        """The signal that came, or 0."""
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Take the signals of this process, from its main thread. Those that it ignores stay so, as under nohup."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        self.number, self._process = 0, os.getpid()
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._note)

    def release(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def agreed(self) -> int:
        """The signal that any process of the run has got, or 0. All processes ask together."""
        if get_world_size() == 1:
            return self.number
        number = torch.tensor(self.number)
        all_reduce(number, "max")
        return int(number)

    def _note(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a process that was forked from this one
            return
        if not self.number:
            self.number, self._at = number, time.monotonic()
            if get_rank() == 0:
                name = signal.Signals(number).name
                text = f"{name}: the run saves a checkpoint after this iteration and ends; a second one ends it at once"
                os.write(2, f"{text}\n".encode())  # a logger could be in the middle of a line
        elif "TORCHELASTIC_RUN_ID" not in os.environ or time.monotonic() - self._at > TWICE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


class KeepWorking:
    """A ``worker_init_fn``: the worker of a dataloader obeys its parent alone, which ends it after it has saved.

    Slurm and a terminal send their signals to all processes of a run. A worker whose parent is dead ends by itself.

    Args:
        then: what is called next, with the worker's number.
    """

    def __init__(self, then: Callable[[int], None] | None = None) -> None:
        self.then = then

    def __call__(self, worker_id: int) -> None:
        leave_signals_to_the_parent()
        if self.then is not None:
            self.then(worker_id)


def leave_signals_to_the_parent() -> None:
    """In the worker of a dataloader: see ``KeepWorking``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    """End this process when its parent asks it to."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


def position(batches: int, length: int) -> dict[str, Any]:
    """Where a run is within an epoch, as plain data. All processes of the run ask together.

    Args:
        batches: how many batches of the epoch are trained.
        length: batches of the epoch.
    """
    states: list[Any] = all_gather_object(_random_state()) if get_world_size() > 1 else [_random_state()]
    return {"batches": batches, "length": length, "random": states}


def resume_within_epoch(runner: Any, where: dict[str, Any]) -> None:
    """Have the epoch that begins now skip the batches before ``where``, and go on with the random numbers of then.

    The batches are loaded, so that the workers' random numbers are those of the first run, too.
    """
    loop, states = runner.train_loop, where["random"]
    if where["length"] != len(loop.dataloader) or len(states) != get_world_size():
        runner.logger.warning(
            "the epochs have another length than in the run before: this epoch starts from its first batch"
        )
        loop._iter = loop._epoch * len(loop.dataloader)
        return
    runner.logger.info(
        f"the first {where['batches']} of {where['length']} batches of this epoch are trained: loading the next"
    )
    run_iter = loop.run_iter

    def skip(index: int, batch: Any) -> None:
        if index + 1 >= where["batches"]:
            _set_random_state(states[get_rank()])
            loop.run_iter = run_iter

    loop.run_iter = skip


def _random_state() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    _, keys, at, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [np.asarray(keys).tolist(), at, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_random_state(state: dict[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
