"""What the package does with files."""

from __future__ import annotations

import subprocess
from pathlib import Path

from mm_vitbackbones.files import tracked


def test_files_of_a_user_are_not_among_those_that_git_knows(tmp_path: Path) -> None:
    folder = tmp_path / "configs"
    (folder / "parts").mkdir(parents=True)
    for name in ("ours.py", "parts/part.py", "mine.py"):
        (folder / name).touch()
    assert [path.name for path in tracked(folder)] == ["mine.py", "ours.py", "part.py"]  # there is no git
    for command in (["init", "-q"], ["add", "configs/ours.py", "configs/parts"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert tracked(folder) == [folder / "ours.py", folder / "parts/part.py"]


def test_in_another_projects_repository_no_file_is_left_out(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    copy = tmp_path / "vendor" / "configs"
    copy.mkdir(parents=True)
    (copy / "ours.py").touch()
    assert tracked(copy) == [copy / "ours.py"]
