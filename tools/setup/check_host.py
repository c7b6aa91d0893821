"""Check what the set-up needs from the system, before anything is downloaded. Needs the standard library alone.

    python tools/setup/check_host.py [--compiler]

With --compiler, whether mmcv can be built. Exit code 1 and one line that says what to install if something is missing.
"""

import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig


def compiles(command, language, source):
    """Whether a compiler accepts a source text."""
    command = [*shlex.split(command), "-x", language, "-fsyntax-only", "-"]
    try:
        return subprocess.run(command, input=source.encode(), capture_output=True).returncode == 0
    except OSError:
        return False


def missing(compiler):
    """Pairs of a thing that is missing and the Debian package that brings it."""
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        yield "Python's venv module", "python3-venv"
    if not compiler:
        return
    # torch's extension builder calls c++ unless CXX says otherwise; the rest of the build calls gcc unless CC does.
    if not compiles(os.environ.get("CC", "gcc"), "c", "#include <stdlib.h>\n"):
        yield "a C compiler (gcc)", "gcc"
    if not compiles(os.environ.get("CXX", "c++"), "c++", "#include <vector>\n"):
        yield "a C++ compiler (g++)", "g++"
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        yield "Python's header Python.h", "python3-dev"


def main(argv):
    if sys.version_info < (3, 10):  # noqa: UP036 - the one file that an older Python gets to run
        found = ".".join(map(str, sys.version_info[:3]))
        return f"Python 3.10 or newer is needed, this is {found}: name another one, e.g. make setup PYTHON=python3.11"
    things = list(missing(compiler="--compiler" in argv))
    if things:
        names, packages = zip(*things)  # noqa: B905 - as above
        return f"missing: {', '.join(names)}. Install with: apt-get install {' '.join(packages)}"
    return None


if __name__ == "__main__":
    problem = main(sys.argv[1:])
    sys.exit(f"error: {problem}" if problem else 0)
