"""Addresses with a scheme, in every way that a command takes one: resolved to a file or URL that is read as safely."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mmengine.fileio
import pytest
import torch
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

from helpers.attacks import zipped
from helpers.toy_runs import StopHook, Stopped, ToyModel, toy_config, toy_runner
from mm_vitbackbones import limits
from mm_vitbackbones.checkpoints import CheckpointError, UnsafeCheckpointError, downloading, read_checkpoint
from mm_vitbackbones.checkpoints.addresses import resolved
from mm_vitbackbones.cli.arguments import checkpoint_file
from mm_vitbackbones.cli.launch import registry_errors
from mm_vitbackbones.cli.preflight import check_local_file, check_pretrained
from mm_vitbackbones.cli.weights import EvaluationRunner
from mm_vitbackbones.engine.resume import read
from mm_vitbackbones.errors import UserError

URL = "https://files.example/net.pth"
CALLS_SYSTEM = b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00x\x85R."


@pytest.mark.parametrize(
    ("address", "stands_for"),
    [
        ("a.pth", "a.pth"),
        (URL, URL),
        ("file:///data/a%20file.pth", "/data/a file.pth"),
        ("file://localhost/data/a.pth", "/data/a.pth"),
        ("torchvision://resnet50", "https://download.pytorch.org/models/resnet50-0676ba61.pth"),
        ("modelzoo://resnet50", "https://download.pytorch.org/models/resnet50-0676ba61.pth"),
        ("open-mmlab://vgg16_caffe", "https://download.openmmlab.com/pretrain/third_party/vgg16_caffe-292e1171.pth"),
        ("openmmlab://vgg16_caffe", "https://download.openmmlab.com/pretrain/third_party/vgg16_caffe-292e1171.pth"),
        (
            "open-mmlab://resnet50_caffe",
            "https://download.openmmlab.com/pretrain/third_party/resnet50_caffe-788b5fa3.pth",
        ),
        (
            "mmcls://vgg11",
            "https://download.openmmlab.com/mmclassification/v0/vgg/vgg11_batch256_imagenet_20210208-4271cd6c.pth",
        ),
        ("s3://bucket/net.pth", "s3://bucket/net.pth"),
        ("cluster:petrel://bucket/net.pth", "cluster:petrel://bucket/net.pth"),
    ],
)
def test_an_address_stands_for_what_mmengine_lists(address: str, stands_for: str) -> None:
    assert resolved(address) == stands_for


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (
            "timm://pit_b_224",
            "timm:// is no kind of address: files of timm have addresses such as https://huggingface.co/",
        ),
        ("hf://timm/pit_b", "hf:// is no kind of address: files have addresses such as https://huggingface.co/"),
        ("mmdet://retinanet", "MMDetection's model zoo has the https address of each file; give an https address, or"),
        ("mmseg://segformer", "MMSegmentation's model zoo has the https address of each file; give an https address"),
        ("pavi://net.pth", "pavi:// is no kind of address: give an https address, or download the file by hand"),
        ("ftp://host/net.pth", "ftp:// is no kind of address: give an https address, or download the file by hand"),
        ("open-mmlab://vgg16_cafe", "MMEngine's list of open-mmlab:// has no 'vgg16_cafe'; did you mean 'vgg16_caffe'"),
        ("torchvision://resnet5", "MMEngine's list of torchvision:// has no 'resnet5'; did you mean 'resnet5"),
        ("mmcls://vgg12", "MMEngine's list of mmcls:// has no 'vgg12'; did you mean 'vgg1"),
        ("file://host/net.pth", "file://host/net.pth is no address of a file on this machine"),
        ("http://host/net.pth", "only https is safe"),
    ],
)
def test_an_address_that_is_not_fetched_is_one_line_before_a_training(address: str, why: str) -> None:
    pretrained = {"backbone": {"type": "Other", "init_cfg": {"type": "Pretrained", "checkpoint": address}}}
    for check in (lambda: check_local_file(address, "load_from"), lambda: check_pretrained(pretrained)):
        with pytest.raises(UserError) as caught:
            check()
        assert why in str(caught.value)
        assert "\n" not in str(caught.value)
    if not address.startswith("http"):
        with pytest.raises(CheckpointError, match=address.partition("://")[0]):
            read_checkpoint(address)


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a URL of MMEngine's lists gives, by our download alone."""
    path = tmp_path / "served.pth"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))

    def download(url: str, partial: Path) -> None:
        assert url == URL
        partial.write_bytes(path.read_bytes())

    monkeypatch.setattr(downloading, "download", download)
    for part in ("external", "mmcls", "torchvision"):
        monkeypatch.setattr(f"mmengine.runner.checkpoint.get_{part}_models", lambda: {"net": URL})
    monkeypatch.setattr("mmengine.runner.checkpoint.load_url", lambda *_, **__: pytest.fail("downloaded by MMEngine"))
    return path


ADDRESSES = (URL, "open-mmlab://net", "openmmlab://net", "mmcls://net", "torchvision://net", "modelzoo://net")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    toy_runner(toy_config(train_cfg__max_epochs=1), folder).train()
    return folder / "epoch_1.pth"


def by_load_from(address: str, folder: Path) -> Any:
    runner = toy_runner(toy_config(custom_hooks=[]), folder, load_from=address)
    runner.register_hook(StopHook(0))
    with contextlib.suppress(Stopped):
        runner.train()
    return runner.model


def by_resume(address: str, folder: Path) -> Any:
    runner = toy_runner(toy_config(), folder, load_from=address, resume=True)
    runner.register_hook(StopHook(0))
    with contextlib.suppress(Stopped):
        runner.train()
    assert runner.epoch == 1
    return runner.model


def by_evaluation(address: str, folder: Path) -> Any:
    given = checkpoint_file(address)  # as the commands test and predict take it
    runner = toy_runner(toy_config(), folder, EvaluationRunner)
    runner.use(read(given), given)
    runner.load_or_resume()
    return runner.model


def by_another_network(address: str, folder: Path) -> Any:
    """``init_cfg`` of a network that is none of ours: MMEngine's own initialiser reads it."""
    model = ToyModel()
    with registry_errors(Path("config.py")):
        load_checkpoint(model.backbone if address.startswith("mmcls") else model, address, map_location="cpu")
    return model


WAYS = (by_load_from, by_resume, by_evaluation, by_another_network)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("address", [*ADDRESSES, "file://"])
def test_every_command_takes_addresses_by_our_download(
    way: Callable[[str, Path], nn.Module], address: str, net: Path, trained: Path, tmp_path: Path
) -> None:
    net.write_bytes(trained.read_bytes())
    model = way(f"file://{net}" if address == "file://" else address, tmp_path / "run")
    expected = torch.load(trained, weights_only=True)["state_dict"]
    for key in ("backbone.0.weight", "backbone.1.bias"):
        torch.testing.assert_close(model.state_dict()[key], expected[key])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("address", [*ADDRESSES, "file://", "a path"])
def test_no_command_runs_code_of_a_file_at_an_address(
    way: Callable[[str, Path], Any], address: str, net: Path, tmp_path: Path
) -> None:
    zipped(net, CALLS_SYSTEM)
    given = {"file://": f"file://{net}", "a path": str(net)}.get(address, address)
    with pytest.raises((UserError, UnsafeCheckpointError), match=r"asks for a call of (os|posix)\.system|may run code"):
        way(given, tmp_path / "run")


def test_a_storage_client_fetches_and_the_content_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def get_local_path(name: str) -> Iterator[str]:
        assert name == "s3://bucket/net.pth"
        yield str(tmp_path / "a.pth")

    with pytest.raises(CheckpointError, match=r"cannot fetch s3://bucket/net.pth: .*petrel.*fetch it by hand"):
        read_checkpoint("s3://bucket/net.pth")  # its client is not installed
    monkeypatch.setattr(mmengine.fileio, "get_local_path", get_local_path)
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    assert torch.equal(read_checkpoint("s3://bucket/net.pth")["a"], torch.ones(2))
    zipped(tmp_path / "a.pth", CALLS_SYSTEM)
    with pytest.raises(UnsafeCheckpointError):
        read_checkpoint("s3://bucket/net.pth")


def test_a_scheme_of_the_users_own_is_left_to_its_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CheckpointLoader, "_schemes", dict(CheckpointLoader._schemes))

    def load(name: str, map_location: Any = None) -> Any:
        return {"state_dict": {"a": torch.full((1,), 5.0)}}

    load.__module__ = "my_plugin"
    CheckpointLoader.register_scheme("mine://", load)
    check_local_file("mine://net", "load_from")
    assert read_checkpoint("mine://net")["state_dict"]["a"] == 5


def test_mmengines_own_loaders_are_back_after_a_command(tmp_path: Path) -> None:
    before = dict(CheckpointLoader._schemes)
    with contextlib.suppress(UserError), registry_errors(tmp_path):
        assert CheckpointLoader._schemes["http://"] is not before["http://"]
        raise UserError("something")
    assert before == CheckpointLoader._schemes


def test_the_limit_of_downloads_holds_for_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same function for names and URLs."""
    asked = []
    monkeypatch.setattr(
        downloading, "download", lambda url, partial: asked.append(url) or downloading._check_size(url, 9)
    )
    monkeypatch.setattr(limits, "DOWNLOAD", limits.Limit(8, "bytes"))
    with pytest.raises(CheckpointError, match=r"vgg16_caffe-292e1171.pth has at least 9 bytes, and the limit is 8;"):
        read_checkpoint("open-mmlab://vgg16_caffe")
    assert len(asked) == 1
