"""A ``data.yaml`` of a few bytes asks for no more than a list of classes does."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from helpers.sources import annotations, convert, write_image, write_text
from mm_vitbackbones import limits
from mm_vitbackbones.errors import UserError

TENFOLD = "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in itertools.pairwise("abcdefghij"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f"a: &a [x,x,x]\n{TENFOLD}names: *j\n",
            "data.yaml has [0-9,]{13} bytes with all that its names refer to, and the limit",
        ),
        (
            f"a: &a [x,x,x]\n{TENFOLD}names: [cat]\ntrain: *j\n",
            "data.yaml has [0-9,]{13} bytes with all that its names refer",
        ),
        ("a: &a [*a]\nnames: [cat]\n", r"data.yaml has more than 10\^20 bytes"),
        ("names: " + "[" * 3000 + "]" * 3000, "data.yaml is no YAML: it is nested too deeply"),
        ("names: [cat]\nday: 2020-99-99\n", "data.yaml is no YAML: month must be in"),
        ("names: [[cat]]\n", "data.yaml: the name of class 0 is of type list: write a text"),
        ("names: [cat, {dog: 1}]\n", "data.yaml: the name of class 1 is of type dict: write a text"),
        (f"names: [0x{'f' * 5000}]\n", "data.yaml: the name of class 0 is of type int: write a text"),
    ],
    ids=["names", "images", "itself", "depth", "day", "list", "dict", "number"],
)
def test_names_without_bounds_end_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    write_image(tmp_path / "data/images/0.png")
    write_text(tmp_path / "data/labels/0.txt", "0 0.5 0.5 0.5 0.5\n")
    write_text(tmp_path / "data/data.yaml", text)
    with pytest.raises(UserError, match=said) as raised:
        convert(tmp_path / "data", "--format", "yolo")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_file_over_the_limit_is_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yaml.safe_load", lambda text: pytest.fail("it was parsed"))
    monkeypatch.setattr(limits, "CLASS_LIST", limits.Limit(10, "bytes"))
    write_text(tmp_path / "data/data.yaml", "names: [cat, dog]\n")
    with pytest.raises(UserError, match=r"data\.yaml has 18 bytes, and the limit is 10"):
        convert(tmp_path / "data", "--format", "yolo")


def test_names_may_be_referred_to(tmp_path: Path) -> None:
    for number in range(4):
        write_image(tmp_path / f"data/images/{number}.png")
        write_text(tmp_path / f"data/labels/{number}.txt", "1 0.5 0.5 0.5 0.5\n")
    write_text(tmp_path / "data/data.yaml", "own: &own [cat, 7, yes]\nnames: *own\nagain: *own\n")
    content = annotations(convert(tmp_path / "data"), "train")
    assert [category["name"] for category in content["categories"]] == ["cat", "7", "True"]
