"""A training with low-rank adapters: what it changes and keeps, how it resumes, and what its checkpoints hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData
from torch import nn

from helpers.attachments import difference, random_network
from helpers.memory import kept_bytes
from helpers.peft import needs_peft, peft  # noqa: F401
from helpers.runs import run_line, write_config
from helpers.toy_runs import StopHook, Stopped, toy_config, toy_runner
from mm_vitbackbones import adapters
from mm_vitbackbones.checkpoints import CheckpointError, convert_checkpoint, load_pretrained, merge_checkpoint
from mm_vitbackbones.cli import convert_checkpoint as command
from mm_vitbackbones.cli import weights
from mm_vitbackbones.cli.model import build_model
from mm_vitbackbones.engine.resume import read
from mm_vitbackbones.engine.summary import describe_model
from mm_vitbackbones.errors import UserError

pytestmark = [needs_peft, pytest.mark.usefixtures("peft")]
ASKED = dict(rank=4, alpha=6, dropout=0.2)


class Toy(BaseModel):
    """A backbone and a head of one linear map."""

    def __init__(self, asked: dict[str, Any] | None) -> None:
        super().__init__()
        self.backbone, self.head = random_network("dinov3", adapters=asked), nn.Linear(16, 1)

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        numbers = torch.stack([*inputs])  # (B, 2)
        image = numbers[:, :1, None, None] * torch.linspace(-1, 1, 3 * 32 * 32).view(3, 32, 32)
        found = self.head(self.backbone(image)[-1].mean((2, 3)))
        return {"loss": (found - 1).square().mean()} if mode == "loss" else found


def train(folder: Path, asked: dict[str, Any] | None = ASKED, stop: int | None = None, **options: Any) -> Any:
    """Three epochs of the toy, with averaged weights."""
    torch.manual_seed(0)
    hooks = [dict(type="EMAHook", momentum=0.1), dict(type="mm_vitbackbones.EpochSeedHook")]
    cfg = toy_config(train_cfg__max_epochs=3, train_dataloader__batch_size=4, custom_hooks=hooks)
    runner = toy_runner(cfg, folder, model=Toy(asked), **options)
    if stop is None:
        runner.train()
        return runner
    runner.register_hook(StopHook(stop))
    with pytest.raises(Stopped):
        runner.train()
    return runner


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, peft: None) -> Path:  # noqa: F811
    """The folder of a training."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder)
    return folder


def test_a_training_changes_adapters_and_head_alone_and_its_checkpoint_says_so(trained: Path) -> None:
    torch.manual_seed(0)
    start, found = Toy(ASKED).state_dict(), read(trained / "epoch_3.pth")
    assert found["meta"]["adapters"] == {"rank": 4, "alpha": 6.0, "linear_maps": 16}
    assert found["state_dict"].keys() == start.keys()
    assert {key for key in start if not adapters.is_adapter(key)} == Toy(None).state_dict().keys()
    for weights_of in (found["state_dict"], {key[7:]: x for key, x in found["ema_state_dict"].items()}):
        changed = {key for key in start if not torch.equal(weights_of[key], start[key])}
        assert changed == {k for k in start if k.startswith("head.") or (adapters.is_adapter(k) and k[-5:] != "alpha")}


def test_a_resumed_training_equals_one_that_was_never_stopped(trained: Path, tmp_path: Path) -> None:
    train(tmp_path, load_from=str(trained / "epoch_1.pth"), resume=True)
    resumed, whole = (read(folder / "epoch_3.pth") for folder in (tmp_path, trained))
    for part in ("state_dict", "ema_state_dict"):
        assert all(torch.equal(x, whole[part][key]) for key, x in resumed[part].items())


OTHERS = [None, dict(ASKED, rank=2), dict(ASKED, alpha=9), dict(ASKED, targets="all")]


@pytest.mark.parametrize("asked", OTHERS, ids=str)
def test_weights_of_other_adapters_are_refused_in_one_line(asked: Any, trained: Path, tmp_path: Path) -> None:
    file = trained / "epoch_1.pth"
    message = r"epoch_1.pth: the weights have adapters of rank 4 and alpha 6 in 16 linear maps, and the network has .+"
    for resume in (True, False):
        with pytest.raises(UserError, match=message) as caught:
            train(tmp_path, asked, stop=0, load_from=str(file), resume=resume)
        assert ("--merge" if asked is None else "the same rank, alpha and targets") in str(caught.value)
    with pytest.raises(UserError, match=message):
        weights.load_weights(Toy(asked), read(file), file)


def test_an_adapted_training_starts_from_weights_without_adapters_but_does_not_go_on_from_them(tmp_path: Path) -> None:
    file = tmp_path / "plain.pth"
    state = Toy(None).state_dict()
    torch.save({"state_dict": state, "meta": {}, "optimizer": {}, "message_hub": {}}, file)
    with pytest.raises(UserError, match="the weights have none: leave the backbone's adapters out"):
        train(tmp_path, stop=0, load_from=str(file), resume=True)
    with pytest.raises(UserError, match="the weights have none: leave the backbone's adapters out"):
        weights.load_weights(Toy(ASKED), read(file), file)
    runner = train(tmp_path, stop=0, load_from=str(file))
    found = runner.model.state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("name", ["norm.weight", "blocks.0.attn.q.weight", "blocks.0.attn.q.lora_A.weight"])
def test_infinite_weights_are_refused_by_their_plain_name(name: str) -> None:
    state = Toy(ASKED).state_dict()
    state[f"backbone.{name}"].view(-1)[0] = float("inf")
    with pytest.raises(CheckpointError, match=rf"NaN or infinite weights, under backbone\.{name}"):
        weights.load_weights(Toy(ASKED), {"state_dict": state}, "file.pth")
    with pytest.raises(CheckpointError, match=rf"NaN or infinite weights, under {name}"):
        load_pretrained(random_network("dinov3", adapters=ASKED), state)


def test_merged_weights_give_the_same_without_adapters(trained: Path, tmp_path: Path, capsys: Any) -> None:
    file, model, without = trained / "epoch_3.pth", Toy(ASKED).eval(), Toy(None).eval()
    weights.load_weights(model, read(file), file)
    command.main(["--merge", str(file), str(tmp_path / "merged.pth")])
    assert capsys.readouterr().out.startswith("adapters of rank 4 and alpha 6 in 16 linear maps were merged: ")
    merged = read(tmp_path / "merged.pth")
    assert merged["meta"] == {"dataset_meta": read(file)["meta"]["dataset_meta"]}
    weights.load_weights(without, merged, "merged.pth")
    numbers = torch.rand(3, 2)
    with torch.no_grad():
        expected = model(numbers)
        assert difference([without(numbers)], [expected]) < 1e-5
    torch.save({"state_dict": Toy(None).state_dict()}, tmp_path / "plain.pth")
    weights.load_weights(without, read(tmp_path / "plain.pth"), "plain.pth")
    assert difference([without(numbers).detach()], [expected]) > 1e-3

    with pytest.raises(CheckpointError, match="holds no adapters: there is nothing to merge"):
        merge_checkpoint(tmp_path / "merged.pth", tmp_path / "again.pth")
    with pytest.raises(FileExistsError):
        merge_checkpoint(file, tmp_path / "merged.pth")
    assert not (tmp_path / "again.pth").exists()


def test_other_layouts_take_merged_weights_alone(trained: Path, tmp_path: Path) -> None:
    file, arch = trained / "epoch_3.pth", dict(dim=16, num_heads=2, depth=4, layer_scale=0.5)
    with pytest.raises(CheckpointError, match="which no layout holds: merge them with --merge"):
        convert_checkpoint(file, tmp_path / "official.pth", "official", arch)
    command.main(["--merge", "--to", "official", "--arch", str(arch), str(file), str(tmp_path / "official.pth")])
    network, without = (random_network("dinov3", seed=1, adapters=asked).eval() for asked in (ASKED, None))
    load_pretrained(network, file)
    load_pretrained(without, tmp_path / "official.pth")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert difference(without(image), network(image)) < 1e-5


# ---- detectors and segmentors

DINO = dict(type="mm_vitbackbones.DINOv3", arch=dict(dim=16, num_heads=2, depth=4, layer_scale=0.5))


def detector(asked: Any, tmp_path: Path) -> tuple[Any, list[Any]]:
    pytest.importorskip("mmdet")
    from mmdet.structures import DetDataSample

    cfg = Config.fromfile(write_config("tiny_detector", tmp_path, tmp_path))
    cfg.model.backbone = dict(DINO, adapters=asked)
    cfg.model.neck.update(in_channels=[16, 16, 16, 16], start_level=0)
    sample = DetDataSample(metainfo=dict(img_shape=(64, 64), pad_shape=(64, 64), batch_input_shape=(64, 64)))
    boxes = torch.tensor([[4.0, 4, 40, 40], [20, 10, 60, 60]])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 3]))
    return build_model(cfg), [sample]


def segmentor(asked: Any, tmp_path: Path) -> tuple[Any, list[Any]]:
    pytest.importorskip("mmseg")
    from mmseg.structures import SegDataSample

    cfg = Config.fromfile(write_config("tiny_segmentor", tmp_path, tmp_path))
    cfg.model.backbone = dict(DINO, adapters=asked)
    cfg.model.decode_head.update(in_channels=[16, 16, 16, 16])
    sample = SegDataSample(metainfo=dict(img_shape=(64, 64), pad_shape=(64, 64)))
    sample.gt_sem_seg = PixelData(data=torch.randint(0, 9, (1, 64, 64)))
    return build_model(cfg), [sample]


@pytest.mark.parametrize("build", [detector, segmentor])
@pytest.mark.parametrize("narrow", [False, True], ids=["fp32", "bf16"])
def test_a_step_trains_adapters_neck_and_head_alone_and_keeps_less(build: Any, narrow: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, samples = build(dict(rank=4), tmp_path)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    image = torch.randn(1, 3, 64, 64)
    model.train()
    for _ in range(2):  # the gradients of one of the two maps of an adapter are zero at first
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            losses = model.loss(image, samples)
        total, _ = model.parse_losses(losses)
        total.backward()
        optimizer.step()
    expected = {name for name in start if not name.startswith("backbone.") or adapters.is_adapter(name)}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == expected
    assert {name for name, p in model.named_parameters() if p.grad is not None} == expected
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
    assert changed <= expected
    assert {name for name in expected if adapters.is_adapter(name)} <= changed
    assert " with adapters of rank 4 and alpha 16 in 16 linear maps, " in describe_model(model, {})

    whole, _ = build(None, tmp_path)
    kept = [kept_bytes(each.train(), lambda each=each: each.loss(image, samples)) for each in (model, whole)]
    assert kept[0] < kept[1]


@pytest.mark.slow
@pytest.mark.mmdet
def test_the_tools_train_resume_test_and_merge(data: Path, tmp_path: Path) -> None:
    config = write_config("tiny_detector", data, tmp_path)
    text = config.read_text()
    given = "adapters=dict(rank=4, targets='all'),\n        drop_path_rate=0.2,"
    adapted = tmp_path / "adapted.py"
    adapted.write_text(text.replace("drop_path_rate=0.2,", given))
    place = os.path.dirname(os.path.dirname(__import__("peft").__file__))
    paths = os.pathsep.join([str(Path(adapters.__file__).parents[1]), place])

    def run(line: str) -> str:
        outcome = run_line(f"python -m mm_vitbackbones {line}", tmp_path, PYTHONPATH=paths)
        assert outcome.returncode == 0, outcome.stderr[-3000:]
        return outcome.stdout + outcome.stderr

    run(f"train {adapted} --work-dir whole")
    run(f"train {adapted} --work-dir parts --cfg-options train_cfg.max_epochs=1")
    run(f"train {adapted} --work-dir parts --resume")
    whole, parts = (read(tmp_path / folder / "epoch_2.pth")["state_dict"] for folder in ("whole", "parts"))
    assert all(torch.equal(tensor, parts[key]) for key, tensor in whole.items())
    run("convert_checkpoint --merge whole/epoch_2.pth merged.pth")
    maps = []
    for path, file in ((adapted, "whole/epoch_2.pth"), (config, "merged.pth")):
        run(f"test {path} {file}")
        model = build_model(Config.fromfile(path)).eval()
        weights.load_weights(model, read(tmp_path / file), file)
        with torch.no_grad():
            maps.append([x for level in model(torch.ones(1, 3, 96, 96)) for x in level])
    assert difference(*maps) < 1e-5
    outcome = run_line(f"python -m mm_vitbackbones test {config} whole/epoch_2.pth", tmp_path, PYTHONPATH=paths)
    assert outcome.returncode == 2
    assert "merge them: convert_checkpoint --merge IN OUT" in outcome.stderr
