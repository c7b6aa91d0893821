"""Write the hashes of all files of each version in constraints.txt into it, for maintainers.

    pip install uv
    python tools/setup/make_hashes.py [--also WHEEL...]

uv looks up the files on the package index: every wheel and the source of a version. ``--also`` adds files from
elsewhere, such as PyTorch's own builds for the CPU alone, to the version that their names begin with.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from pinned import CONSTRAINTS, PIN, SECTION

HASH = re.compile(r"sha256:[0-9a-f]{64}")


def look_up(pins: list[str]) -> dict[str, set[str]]:
    """The hashes of ``name==version``, as the package index has them."""
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    command = [uv, "pip", "compile", "--quiet", "--universal", "--no-deps", "--no-annotate", "--no-header"]
    for oldest in ("3.10", "3.11"):  # some of the peers need 3.11
        options = ["--generate-hashes", "--python-version", oldest, "-"]
        outcome = subprocess.run([*command, *options], input="\n".join(pins), capture_output=True, text=True)
        if outcome.returncode == 0:
            break
    else:
        sys.exit(outcome.stderr or f"error: {uv} failed")
    found: dict[str, set[str]] = {}
    for line in outcome.stdout.replace("\\\n", " ").splitlines():
        if pin := PIN.match(line):
            found.setdefault(pin[0], set()).update(HASH.findall(line))
    return found


def with_hashes(text: str, also: list[Path]) -> str:
    """constraints.txt with new hashes, everything else as it is."""
    lines = re.sub(r" *\\\n *--hash=\S+", "", text).splitlines()
    digests: dict[str, set[str]] = {}
    for start in [i for i, line in enumerate(lines) if SECTION.match(line)]:
        rest = lines[start + 1 :]
        end = next((i for i, line in enumerate(rest) if SECTION.match(line)), len(rest))
        for pin, found in look_up([line for line in rest[:end] if PIN.match(line)]).items():
            digests.setdefault(pin, set()).update(found)
    for path in also:
        name, version = path.name.replace("_", "-").split("-")[:2]
        pin = f"{name.lower()}=={version.partition('+')[0]}"
        digests[pin].add(f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}")
    return "".join(f"{line}{hashes_of(line, digests)}\n" for line in lines)


def hashes_of(line: str, digests: dict[str, set[str]]) -> str:
    pin = PIN.match(line)
    return "".join(f" \\\n    --hash={digest}" for digest in sorted(digests[pin[0]])) if pin else ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the hashes of the packages in constraints.txt into it.")
    parser.add_argument("--also", nargs="+", type=Path, default=[], metavar="WHEEL", help="files from elsewhere")
    text = with_hashes(CONSTRAINTS.read_text(encoding="utf-8"), parser.parse_args().also)
    CONSTRAINTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
