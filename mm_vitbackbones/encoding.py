"""Text in UTF-8, whatever the environment says of encodings. Needs Python alone."""

from __future__ import annotations

import io
import locale
import os
import sys


def use_utf8() -> None:
    """Have this process read and write names of files and text in UTF-8, and print any text.

    Where the environment asks for another encoding, as ``LC_ALL=C`` does, the process begins again with Python's UTF-8
    mode: an encoding of file names cannot be changed later, and libraries open text files in that of the environment.
    Output in another encoding shows the characters that this lacks as escape sequences.
    """
    names = {sys.getfilesystemencoding(), locale.getpreferredencoding(False)}
    if not all(name.lower().replace("-", "") == "utf8" for name in names) and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"
        if sys.executable and not sys.flags.ignore_environment:
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="backslashreplace")
