"""Runs a function of helpers/distributed.py in two processes: ``in_two.py FUNCTION FOLDER``.

They are forks of a process that has imported the libraries (helpers/warm.py): importing them takes each one 4 s.
"""

from __future__ import annotations

import sys

import torch

from helpers import distributed

if __name__ == "__main__":
    work = getattr(distributed, sys.argv[1])
    torch.multiprocessing.start_processes(work, args=(sys.argv[2],), nprocs=2, start_method="fork")
