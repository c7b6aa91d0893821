import ast
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

import mm_vitbackbones
from helpers import coco
from helpers.attacks import text, zipped
from helpers.toys import TOYS
from mm_vitbackbones.checkpoints import load_pretrained, read_checkpoint
from mm_vitbackbones.cli import check_data, convert_checkpoint, convert_dataset
from mm_vitbackbones.cli.arguments import run
from mm_vitbackbones.cli.predict import Results
from mm_vitbackbones.engine.drawing import class_name, draw_boxes, draw_legend
from mm_vitbackbones.errors import CheckpointError, UserError, counted, printable, shorten
from mm_vitbackbones.printing import LAYOUT, print, printable_logs

EVIL = "\x1b]0;title\x07\r\x1b[2Jcat\u202egnp.exe\u2066\x9b31m\x00\x7f"
STEERING = set("\x1b\x07\r\u202e\u2066\x9b\x00\x7f")


def check_inert(shown):
    assert not STEERING & set(shown)
    assert r"\x1b]0;title\x07\r\x1b[2Jcat\u202egnp.exe\u2066\x9b31m\x00\x7f" in shown


@pytest.mark.parametrize(
    "text", ["", "backbone.norm1.weight", "Übergröße", "猫", "кошка", "قطة", "می‌خواهم", "👩‍🌾", "a　b", "10 %", "\\x1b"]
)
def test_names_of_all_scripts_stay(text):
    assert printable(text) == text


def test_what_steers_a_terminal_is_escaped():
    check_inert(printable(EVIL))
    assert printable("a\nb\tc") == r"a\nb\tc"
    assert printable("a\nb\tc\x1b", keep="\n\t") == "a\nb\tc\\x1b"
    assert printable("\udcff\u2028\u200f") == r"\udcff\u2028\u200f"
    assert shorten(["a\nb", "c"]) == r"a\nb, c"


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 classes"), (1, "1 class"), (2, "2 classes"), (1200, "1,200 classes")]
)
def test_one_has_no_plural(count, said):
    assert counted(count, "class", "classes") == said
    assert counted(count, "image") == said.replace("classes", "images").replace("class", "image")


def test_what_a_command_prints_logs_and_reports_is_escaped(capsys):
    def main(argv):
        print("class", EVIL, [EVIL][0], sep="\n")
        logging.getLogger("some.library").warning("class %s\nof a table", EVIL)
        raise UserError(f"class {EVIL}\nis odd")

    handler = logging.StreamHandler()
    logging.getLogger("some.library").addHandler(handler)
    try:
        assert run(main, []) == 2
    finally:
        logging.getLogger("some.library").removeHandler(handler)
    captured = capsys.readouterr()
    check_inert(captured.out)
    assert captured.out.count("\n") == 3
    *logged, error = captured.err.splitlines()
    check_inert("\n".join(logged))
    assert logged[-1] == "of a table"
    assert error.startswith("error: class ")
    assert not STEERING & set(error)


def test_a_name_with_a_line_end_makes_no_line_of_its_own(capsys):
    print("class", f"cat\nerror: {EVIL}\tx")
    print("a table\n of\ttwo lines", keep=LAYOUT)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith(r"class cat\nerror: \x1b")
    assert rest == ["a table", " of\ttwo lines"]


def test_names_of_classes_are_escaped_in_drawings_tables_and_results(tmp_path, monkeypatch, capsys):
    """A font has no sign for what is no letter, and a line end would make a line of a table."""
    name = f"cat\nerror: all is lost{EVIL}"
    drawn = []
    monkeypatch.setattr("cv2.putText", lambda image, text, *_: drawn.append(text))
    draw_legend([0], [name], None, 100)
    draw_boxes(np.zeros((9, 9, 3), np.uint8), np.ones((1, 4)), np.zeros(1), np.ones(1), [name], None)
    results = Results([name])
    results.counts.update([class_name(0, [name])])
    for shown in (*drawn, results.total()):
        check_inert(shown)
        assert "\n" not in shown
    assert len(drawn) == 2

    source = tmp_path / "source"
    source.mkdir()
    coco.write_images(source)
    content = coco.content()
    for category in content["categories"]:
        category["name"] += name
    coco.write(source, content)
    assert run(convert_dataset.main, [str(source), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert r"cat\nerror: all is lost\x1b]0;title" in said
    check_inert(said)
    assert not [line for line in said.splitlines() if line.startswith("error")]
    (config,) = (tmp_path / "out").glob("*.py")
    assert not STEERING & set(config.read_text())
    assert "\nerror" not in config.read_text()
    assert run(check_data.main, [str(config)]) == 0
    captured = capsys.readouterr()
    assert not STEERING & set(captured.out + captured.err)
    assert not [line for line in captured.out.splitlines() if line.startswith("error")]


def test_a_message_that_does_not_fit_its_arguments_is_left_to_logging():
    with printable_logs():
        record = logging.getLogRecordFactory()("a", logging.INFO, "", 1, "%d", ("x",), None)
    assert record.msg == "%d"
    assert logging.getLogRecordFactory() is logging.LogRecord


def test_keys_of_a_checkpoint_are_escaped(tmp_path, capsys):
    torch.save({f"key{EVIL}": torch.ones(1)}, tmp_path / "file.pth")
    assert run(convert_checkpoint.main, [str(tmp_path / "file.pth"), str(tmp_path / "out.pth")]) == 2
    assert not STEERING & set(capsys.readouterr().err)


def test_names_in_a_pickle_are_escaped(tmp_path):
    zipped(tmp_path / "file.pth", b"\x80\x02c" + EVIL.encode() + b"\nsystem\n" + text("x") + b"\x85R.")
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(TOYS["pvt"](), {f"block1.0.{EVIL}": torch.ones(1), "pos_embed1": torch.ones(1)})
    assert not STEERING & set(str(caught.value))
    with pytest.raises(CheckpointError, match="refused") as caught:
        read_checkpoint(tmp_path / "file.pth")
    assert not STEERING & set(str(caught.value))


def test_names_of_files_are_escaped(tmp_path, capsys):
    assert run(check_data.main, [str(tmp_path / f"{EVIL[:-2]}.py".replace("/", ""))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert not STEERING & set(error)


def test_all_commands_print_in_this_way():
    package = Path(mm_vitbackbones.__file__).parent
    printing = 0
    for path in package.rglob("*.py"):
        if path.name in ("printing.py", "console.py"):  # console's is given a logger's text
            continue
        tree = ast.parse(path.read_text())
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"]
        if calls:
            printing += 1
            assert any(
                isinstance(node, ast.ImportFrom) and node.module == "mm_vitbackbones.printing"
                and "print" in [alias.name for alias in node.names]
                for node in ast.walk(tree)
            ), path  # fmt: skip
    assert printing > 5
