"""Install packages of constraints.txt, each with the hash that it has there. Needs the standard library and pip alone.

    python tools/setup/pinned.py SECTION... [--as-found] [--target FOLDER] [--wanted-by P] [--unless-wanted-by P]

A section begins with a comment ``# name: ...``. ``--wanted-by P`` installs it only if the installed build of P
asks for one of its packages, ``--unless-wanted-by`` only if not.

Of several builds of a version, pip prefers one whose hash an index gives, and not the one that it takes otherwise:
PyTorch's build for the CPU in a folder of wheels gives way to the one for CUDA. ``--as-found`` has pip fetch wheels as
always first, which runs nothing of them; then their hashes are compared.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
SECTION = re.compile(r"# ([a-z]+): ")
PIN = re.compile(r"([a-z0-9-]+)==([^; \\]+)")


def sections(text: str) -> dict[str, dict[str, str]]:
    """The requirements of each section by their names, with markers and hashes, in the form that pip reads."""
    found: dict[str, dict[str, str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if heading := SECTION.match(line):
            found[heading[1]] = {}
        elif line and not line.startswith("#"):
            pin = PIN.match(line)
            name = pin[1] if pin else line
            entry = found[[*found][-1]]
            entry[name] = f"{entry[name]}\n{line}" if name in entry else line
    return found


def asks_for(package: str, names: Iterable[str]) -> bool:
    """Whether the installed package asks for one of the names, on this machine."""
    from pip._vendor.packaging.requirements import Requirement

    wanted = map(Requirement, importlib.metadata.requires(package) or ())
    there = {one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})}
    return bool(there & {*names})


def install(requirements: str, options: Iterable[str] = ()) -> str:
    """Have pip install the requirements; its errors, or an empty text if there are none."""
    listed = Path(sys.prefix) / "pinned.txt"
    listed.write_text(requirements + "\n", encoding="utf-8")
    return pip("install", "--quiet", "--no-deps", "--require-hashes", "--requirement", str(listed), *options)


def install_as_found(requirements: str, options: Iterable[str] = ()) -> str:
    """``install``, of the wheels that pip finds without looking at hashes."""
    plain = [line.split(" --hash")[0].strip() for line in requirements.splitlines()]
    with tempfile.TemporaryDirectory(dir=sys.prefix) as folder:
        errors = pip("download", "--only-binary=:all:", "--no-deps", "--dest", folder, *plain)
        return errors or install(requirements, ["--no-index", "--find-links", folder, *options])


def pip(*arguments: str) -> str:
    """Run pip; its errors, or an empty text if there are none."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    outcome = subprocess.run(command, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace")
    return (outcome.stderr or "pip failed") if outcome.returncode else ""


def find(requirement: str) -> str:
    """The line of constraints.txt for ``name==version``, with its hashes."""
    there = sections(CONSTRAINTS.read_text(encoding="utf-8"))
    return next(
        pin for section in there.values() for pin in section.values() if f"{pin} ".startswith(f"{requirement} ")
    )


def wrong_hash(errors: str) -> str | None:
    """What pip said, in one line, if a file has not the hash that is expected."""
    wrong = re.search(r"DO NOT MATCH THE HASHES.*?\n +(\S+)(?: from (\S+))?.*?Got +(\w+)", errors, re.DOTALL)
    if not wrong:
        return None
    package, source, digest = wrong.groups()
    advice = "if you changed its version, make its hashes again with tools/setup/make_hashes.py"
    if package.startswith("torch=="):
        advice = 'if you trust this build, name it: make setup TORCH="torch==... --index-url ..."'
    return (
        f"error: {package} is not the file that constraints.txt knows, and was not installed: "
        f"{source or 'it'} has the SHA-256 {digest}; {advice}"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("section", nargs="+")
    parser.add_argument("--as-found", action="store_true")
    parser.add_argument("--target", metavar="FOLDER")
    parser.add_argument("--wanted-by", metavar="PACKAGE")
    parser.add_argument("--unless-wanted-by", metavar="PACKAGE")
    arguments = parser.parse_args(argv)
    there = sections(CONSTRAINTS.read_text(encoding="utf-8"))
    chosen = {name: pin for section in arguments.section for name, pin in there[section].items()}
    if arguments.wanted_by and not asks_for(arguments.wanted_by, chosen):
        return 0
    if arguments.unless_wanted_by and asks_for(arguments.unless_wanted_by, chosen):
        return 0
    options = ["--upgrade", "--target", arguments.target] if arguments.target else []
    errors = (install_as_found if arguments.as_found else install)("\n".join(chosen.values()), options)
    if errors:
        failed = "error: pip could not install what constraints.txt lists: see above"
        print(wrong_hash(errors) or f"{errors.rstrip()}\n{failed}", file=sys.stderr)
    return int(bool(errors))


if __name__ == "__main__":
    sys.exit(main())
