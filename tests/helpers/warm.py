"""A process that has imported the libraries, and forks for each run of a tool: importing them takes 5 s each time."""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import sys
import traceback

from helpers.formatting import format_once

LIBRARIES = (
    "mm_vitbackbones.cli.check_data",
    "mm_vitbackbones.cli.predict",
    "mm_vitbackbones.cli.test",
    "mm_vitbackbones.cli.train",
    *(f"{name}.{part}" for name in ("mmdet", "mmseg") for part in ("datasets", "engine", "evaluation", "models")),
    "mmdet.visualization",
    "mmseg.visualization",
    "torch._dynamo",  # this and what is below, optimizers and MMEngine import when they are used
    "torch.onnx",
    "torch.utils.cpp_extension",
)


def main() -> int:
    """Answers each request, a line of JSON, with a line that has the exit code of the run."""
    for name in LIBRARIES:
        __import__(name)
    format_once()
    gc.freeze()  # what is here stays, and a run that looks at it would copy its pages
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            code = run(**request)
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # taking a whole interpreter with its libraries apart takes a second
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return 0


def run(command: list[str], environment: dict[str, str], folder: str, out: str, err: str) -> int:
    """In the new process: run a script, and return its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    for stream, path, flags in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        os.dup2(os.open(path, flags), stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = command
    sys.path[:0] = map(os.path.abspath, filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)))
    if os.path.basename(command[0]) == "__main__.py":  # as `python -m` has it
        sys.path.insert(0, folder)
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
