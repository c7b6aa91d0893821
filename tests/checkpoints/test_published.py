"""The records of published files: what they say, what names stand for, and what is said of names without a file."""

from __future__ import annotations

import ast
import importlib
import re
import sys
import types
from pathlib import Path

import pytest
import torch

import mm_vitbackbones
from helpers.official import official_state
from helpers.paths import ROOT
from helpers.toys import TOYS
from mm_vitbackbones.backbones import PVT, MiT, PVTv2, Swin
from mm_vitbackbones.build import backbone_names, families
from mm_vitbackbones.checkpoints import CheckpointError, load_pretrained, loading, published, record, tables
from mm_vitbackbones.checkpoints.published import FILES, files_of, licence_of, resolve

# ---- the records


def test_every_record_is_of_a_known_backbone_and_every_backbone_has_one():
    known = {(family.__name__, arch) for family, arch in backbone_names().values()}
    assert {(file.family, file.arch) for file in FILES} == known


def test_the_records_of_a_family_stand_in_its_table():
    for name, family in families().items():
        table = importlib.import_module(f"{tables.__name__}.{family.__module__.rpartition('.')[2]}")
        assert table.FAMILY.name == name
        assert {file.family for file in table.FILES} == {name}


def test_a_new_table_is_found_by_its_place(tmp_path, monkeypatch):
    table = types.ModuleType(f"{tables.__name__}.puddle")
    table.FILES = ("a record",)
    (tmp_path / "puddle.py").touch()
    monkeypatch.setattr(tables, "__path__", [*tables.__path__, str(tmp_path)])
    monkeypatch.setitem(sys.modules, table.__name__, table)
    assert tables.gather("FILES")[-1] == ("a record",)
    assert len(tables.gather("FAMILY")) == len(loading.KNOWN)


def test_what_is_shared_names_no_family():
    for module in (published, record, tables):
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not words & {*families()}


def test_records_of_one_arch_have_names_of_their_own():
    keys = [(file.family, file.arch, file.name) for file in FILES]
    assert len(set(keys)) == len(keys)
    assert len({file.url for file in FILES}) == len(FILES)


def test_a_record_agrees_with_its_url():
    for file in FILES:
        assert file.url.startswith("https://")
        assert file.gated or file.file_name.endswith((".pth", ".pyth", ".safetensors"))
        assert file.sha256 in file.file_name
        assert re.fullmatch(r"[0-9a-f]{8}|", file.sha256)
        assert ("22k" in file.url) == ("22k" in file.name) == ("22k" in file.data)
        assert ("384" in file.file_name) == ("384" in file.name) == (file.size == 384)
        kind = re.sub(r"_(li|distilled|distilled_384|384|small|mini|medium|w12|tiny|p8|reg|plus)$", "", file.arch)
        kind = file.arch.split("_")[1] if file.arch.startswith("deit3_") else kind
        assert (kind[:1] if file.family.startswith(("DINO", "MViT")) else kind) in file.url.lower()


def test_a_file_that_predicts_imagenet1k_says_how_well():
    for file in FILES:
        if file.data in (record.IN1K, record.IN22K_TO_1K):
            assert file.top1 or file.arch.startswith("deit3_")  # not all of DeiT III's are known here
        elif file.data != record.IN21K_TO_1K:
            assert file.top1 is None


def top1_cells() -> list[tuple[str, list[str], str]]:
    """Family, archs and top-1 of each row of the table in docs/backbones.md."""
    rows, family = [], ""
    for line in (ROOT / "docs/backbones.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and re.match(r"`[a-z0-9]\w*`", cells[1]) and "(" in cells[3]:
            family = cells[0].strip("`").removeprefix("mm_vitbackbones.") or family
            rows.append((family, re.findall(r"`(\w+)`", cells[1]), cells[6]))
    return rows


def test_the_pages_top1_is_the_records():
    rows = top1_cells()
    assert len(rows) >= 34
    for family, archs, cell in rows:
        expected = []
        for arch in archs:
            known = files_of(family, arch).values()
            rated = [x for data in (record.IN1K, record.IN22K_TO_1K) for x in known if x.data == data and x.top1]
            if not rated:
                expected.append("-")
                continue
            file = rated[0]
            notes = ["22k"] * (file.data == record.IN22K_TO_1K) + [str(file.size)] * (file.size != 224)
            expected.append(f"{file.top1}" + (f" ({', '.join(notes)})" if notes else ""))
        assert cell == ", ".join(expected)


def test_the_page_of_backbones_names_the_licences_of_the_weights():
    page = " ".join((ROOT / "docs/backbones.md").read_text().split())
    assert "MAE's weights are under CC BY-NC 4.0" in page
    assert "those of DINOv3 under the DINOv3 License" in page
    for family in {file.family for file in FILES} - {"ViT", "DINOv3"}:
        licence = licence_of(family)
        assert {file.licence for file in FILES if file.family == family} == {licence}
        if licence.commercial:
            assert re.search(rf"\b{family}\b[^.]* under (\w\S* and those of \w+ under )?{licence.name}", page), family
        else:
            assert re.search(rf"\*\*Those of {family}[^.]*NVIDIA's own non-commercial terms", page), family


# ---- what a name stands for


def test_a_name_stands_for_the_file_of_the_backbones_own_arch():
    assert resolve("imagenet1k", "Swin", "small").endswith("/v1.0.0/swin_small_patch4_window7_224.pth")
    assert resolve("imagenet22k", "Swin", "tiny").endswith("/v1.0.8/swin_tiny_patch4_window7_224_22k.pth")
    assert resolve("imagenet1k", "MiT", "b0").endswith("/mit_b0_20220624-7e0fe6dd.pth")


@pytest.mark.parametrize(
    "path", ["file.pth", "./imagenet1k", "folder/imagenet1k", "https://example.org/imagenet1k", "imagenet1k.pth", "~/x"]
)
def test_what_has_a_slash_or_a_suffix_is_no_name(path):
    assert resolve(path, "Swin", "tiny") == path


def test_a_bare_word_is_a_file_only_if_it_is_no_published_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="'mine' names no weights"):
        resolve("mine", "PVT", "tiny")
    for name in ("mine", "imagenet1k", "imagenet22k"):
        (tmp_path / name).write_bytes(b"x")
    assert resolve("mine", "PVT", "tiny") == "mine"
    assert resolve("imagenet1k", "PVT", "tiny").endswith("pvt_tiny.pth")
    assert resolve(tmp_path / "imagenet1k", "PVT", "tiny") == tmp_path / "imagenet1k"
    with pytest.raises(CheckpointError, match="'imagenet22k' names no weights"):
        resolve("imagenet22k", "PVT", "tiny")


@pytest.mark.parametrize("checkpoint", [None, "imagenet22k", "imagnet1k"])
def test_a_name_without_a_file_lists_what_there_is(checkpoint):
    message = (
        rf"^checkpoint={checkpoint!r} names no weights: of MiT b2 there are 'imagenet1k' .*top-1 81\.6.*path or a URL$"
    )
    with pytest.raises(CheckpointError, match=message):
        resolve(checkpoint, "MiT", "b2")


def test_all_names_of_an_arch_are_listed():
    with pytest.raises(CheckpointError) as caught:
        resolve(None, "Swin", "base")
    assert "\n" not in str(caught.value)
    for name in ("'imagenet1k'", "'imagenet22k'", "'imagenet22k_to_1k'", "'imagenet1k_openmmlab'"):
        assert name in str(caught.value)


# ---- names in the hands of a user


@pytest.fixture
def download(monkeypatch):
    """The content of the next file that is read, and the addresses that were asked for."""
    asked = []

    def read(checkpoint):
        asked.append(str(checkpoint))
        return read.content

    monkeypatch.setattr(loading, "read_checkpoint", read)
    read.asked = asked
    return read


def test_init_cfg_takes_a_name(download):
    download.content = PVT("tiny").state_dict()
    backbone = PVT("tiny", init_cfg=dict(type="Pretrained", checkpoint="imagenet1k"))
    backbone.init_weights()
    assert download.asked == [resolve("imagenet1k", "PVT", "tiny")]
    assert all(torch.equal(tensor, download.content[key]) for key, tensor in backbone.state_dict().items())


@pytest.mark.parametrize("checkpoint", [None, "imagenet22k"])
def test_init_cfg_without_a_file_lists_what_there_is(checkpoint):
    backbone = PVTv2("b0", out_indices=(0,), init_cfg=dict(type="Pretrained", checkpoint=checkpoint))
    with pytest.raises(CheckpointError, match="of PVTv2 b0 there are 'imagenet1k'"):
        backbone.init_weights()


def test_a_spec_of_ones_own_has_no_names():
    toy = TOYS["pvt"]
    with pytest.raises(CheckpointError, match="of this PVT no published file is known, so give a path or a URL"):
        load_pretrained(toy(), "imagenet1k")


def test_a_spec_that_equals_a_named_arch_has_its_names(download):
    backbone = PVTv2(PVTv2.archs["b0"], out_indices=(0,))
    download.content = backbone.state_dict()
    load_pretrained(backbone, "imagenet1k")
    assert download.asked == [resolve("imagenet1k", "PVTv2", "b0")]


@pytest.mark.parametrize(
    ("pretrained", "file"),
    [
        (True, "swin_tiny_patch4_window7_224.pth"),
        ("imagenet22k", "swin_tiny_patch4_window7_224_22k.pth"),
        ("mine.pth", "mine.pth"),
    ],
)
def test_build_backbone_takes_the_default_a_name_or_a_path(download, pretrained, file):
    download.content = Swin("tiny", out_indices=(0,)).state_dict()
    backbone = mm_vitbackbones.build_backbone("swin_tiny", pretrained=pretrained, out_indices=(0,))
    (asked,) = download.asked
    assert asked.rpartition("/")[2] == file
    assert all(torch.equal(tensor, download.content[key]) for key, tensor in backbone.state_dict().items())


@pytest.mark.parametrize("pretrained", [None, False])
def test_build_backbone_loads_nothing_unasked(download, pretrained):
    mm_vitbackbones.build_backbone("swin_tiny", pretrained=pretrained, out_indices=(0,))
    assert not download.asked


# ---- licences


@pytest.fixture
def logged(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(loading, "print_log", lambda text, **_: lines.append(text))
    monkeypatch.setattr(loading, "_LOGGED", set())
    return lines


@pytest.mark.parametrize("layout", ["official", "openmmlab", "huggingface", "ours"])
def test_the_licence_of_mit_is_logged_once_whatever_the_layout(logged, layout):
    toy = TOYS["mit"]
    family = loading.FAMILIES["MiT"]
    state = family.layout(layout).to_theirs(toy().state_dict())[0]
    for _ in range(2):
        load_pretrained(toy(), state)
    licences = [line for line in logged if "Licen" in line]
    assert len(licences) == 1
    assert "MiT are under the NVIDIA Source Code License (non-commercial)" in licences[0]


def test_a_free_licence_is_not_logged(logged):
    toy = TOYS["pvt_v2"]
    load_pretrained(toy(), official_state("pvt_v2"))
    assert len(logged) == 1


def test_mits_file_in_its_twin_is_known_by_its_name(logged, download):
    download.content = MiT("b5", out_indices=(0,)).state_dict()
    load_pretrained(PVTv2("b5", out_indices=(0,)), "weights/mit_b5_20220624-658746d9.pth")
    assert any("MiT are under the NVIDIA" in line for line in logged)


@pytest.mark.parametrize("checkpoint", ["lvd1689m", "https://huggingface.co/facebook/dinov3-vits16-pretrain-lvd1689m"])
def test_weights_behind_a_licence_are_one_line_that_says_where_it_is_accepted(checkpoint):
    with pytest.raises(CheckpointError, match=r"DINOv3 License: accept it at https://\S+, .* give the path") as caught:
        resolve(checkpoint, "DINOv3", "small")
    assert "\n" not in str(caught.value)


def test_maes_licence_is_logged_and_deits_is_not(logged, download):
    toy = TOYS["vit"]
    download.content = toy(pyramid="resize").state_dict()
    load_pretrained(toy(), "weights/deit_tiny_patch16_224-a1311bcf.pth")
    assert not [line for line in logged if "non-commercial" in line]
    load_pretrained(toy(), "weights/mae_pretrain_vit_base.pth")
    assert any("mae_pretrain_vit_base.pth are under the CC BY-NC 4.0 (non-commercial)" in line for line in logged)
