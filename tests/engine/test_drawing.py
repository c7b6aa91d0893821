"""Images are drawn on as the pipeline of their data set loads them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData, PixelData
from PIL import Image

from helpers.drawing import Images, Sample
from mm_vitbackbones.engine import hooks
from mm_vitbackbones.engine.drawing import (
    CAPTION,
    SHORT_SIDE,
    displayable,
    draw_curves,
    draw_pair,
    draw_prediction,
    enlarged,
)
from mm_vitbackbones.engine.hooks import ImagesHook, drawing_names
from mm_vitbackbones.errors import OutputError, UserError

pytest.importorskip("mmcv")

from mmcv.transforms import LoadImageFromFile

RAMP = np.arange(4 * 6 * 3).reshape(4, 6, 3)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (RAMP.astype(np.uint8), RAMP),
        (RAMP.astype(np.float32), RAMP),  # to_float32=True
        (RAMP / 71, np.round(RAMP / 71 * 255)),
        (RAMP.astype(np.uint16) * 10 + 7, np.round(RAMP / 71 * 255)),
        (RAMP[..., 0].astype(np.uint8), RAMP[..., [0, 0, 0]]),
        (RAMP[..., :1].astype(np.uint8), RAMP[..., [0, 0, 0]]),
        (RAMP[..., :2].astype(np.uint8), RAMP[..., [0, 0, 0]]),
        (RAMP[..., [0, 1, 2, 0, 1]].astype(np.uint8), RAMP),
        (np.where(RAMP < 9, -np.inf, RAMP).astype(np.float32), np.where(RAMP < 9, 9, RAMP)),
        (np.full((4, 6), np.nan), np.zeros((4, 6, 3))),
        (np.full((4, 6), -3.5), np.zeros((4, 6, 3))),
    ],
)
def test_any_image_can_be_drawn_on(image: np.ndarray, expected: np.ndarray) -> None:
    shown = displayable(image)
    assert shown.dtype == np.uint8
    assert shown.flags.c_contiguous
    assert np.array_equal(shown, expected)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4, 5), (0, 4, 3)])
def test_what_is_no_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="cannot be drawn"):
        displayable(np.zeros(shape))


def show(dataset: Any, path: str, labels: torch.Tensor, out: Path) -> np.ndarray:
    """The right half of the drawing of an image: predicted labels on the image."""
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=dataset))
    ImagesHook(str(out)).after_test_iter(
        runner, 0, outputs=[Sample(img_path=path, pred_sem_seg=PixelData(data=labels))]
    )
    drawn = cv2.imread(str(out / f"{Path(path).stem}_gt_pred.png"))[CAPTION:]
    return drawn[:, (drawn.shape[1] + 4) // 2 :]


def test_labels_are_drawn_on_the_turned_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    path = str(tmp_path / "turned.jpg")
    Image.new("RGB", (60, 30), (0, 0, 0)).save(path, exif=exif)
    labels = torch.full((1, 60, 30), 255)
    labels[:, 45:] = 0  # the lower quarter of the turned image
    meta = {"classes": ("tree",), "palette": [(0, 0, 255)]}
    drawn = show(Images([path], LoadImageFromFile(), meta), path, labels, tmp_path / "out")
    scale = SHORT_SIDE // 30
    blue = drawn[: 60 * scale, :, 0] > 100
    assert drawn.shape[1] == 30 * scale
    assert blue[46 * scale :].mean() > 0.9
    assert not blue[: 44 * scale].any()


def test_of_a_decoders_layers_the_last_has_curves() -> None:
    pytest.importorskip("matplotlib")
    last = {"iter": 1, "loss": 9.0} | {f"{kind}loss_{part}": 1.0 for kind in ("", "enc_", "dn_") for part in "abc"}
    layers = {f"d{layer}.{name}": 0.5 for layer in range(9) for name in last if name.startswith(("loss_", "dn_"))}
    assert draw_curves([last | layers], [], "DINO") == draw_curves([last], [], "DINO")
    assert draw_curves([layers | {"iter": 1}], [{"iter": 1}], "no last layer")


def panels(monkeypatch: pytest.MonkeyPatch, losses: Any, metrics: Any) -> list[dict[str, Any]]:
    """What is drawn in each panel: the numbers of points, and the markers, of each curve."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    drawn: list[Any] = []
    monkeypatch.setattr(figure, "savefig", lambda self, *args, **kwargs: drawn.append(self))
    draw_curves(losses, metrics, "run")
    return [
        {line.get_label(): (len(line.get_xdata()), line.get_marker(), line.get_markersize()) for line in axes.lines}
        for axes in drawn[0].axes
    ]


def test_a_metric_that_was_evaluated_once_is_a_point_that_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [{"iter": i, "loss": 1.0 / i} for i in range(1, 5)]
    left, right = panels(monkeypatch, losses, [{"iter": 4, "mIoU": 0.5, "aAcc": 0.7}])
    assert left == {"loss": (4, "None", 3)}
    assert right == {"mIoU": (1, "o", 7), "aAcc": (1, "o", 7)}


def test_no_curve_is_drawn_twice_and_no_panel_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [{"iter": i, "loss": 1.0 / i, "decode.loss_ce": 1.0 / i, "aux.loss": 2.0} for i in range(1, 5)]
    (only,) = panels(monkeypatch, losses, [])
    assert [*only] == ["loss = decode.loss_ce", "aux.loss"]
    (only,) = panels(monkeypatch, [], [{"iter": 1, "mIoU": 0.5}, {"iter": 2, "mIoU": 0.6}])
    assert only == {"mIoU": (2, "o", 3)}
    assert panels(monkeypatch, [], []) == [{}]


def test_images_of_wrapped_data_sets_are_loaded_by_their_own_pipelines(tmp_path: Path) -> None:
    def load(value: float) -> Any:
        return lambda results: {**results, "img": np.full((40, 40, 5), value, np.uint8)}

    first, second = Images(["a.npy"], load(30), {}), Images(["b.npy"], load(200), {})
    both = SimpleNamespace(datasets=[first, SimpleNamespace(dataset=second)], metainfo={})
    for path, value in (("a.npy", 30), ("b.npy", 200)):
        drawn = show(both, path, torch.full((1, 40, 40), 255), tmp_path / "out")
        assert (drawn == value).all()


def test_a_thin_image_is_not_enlarged_beyond_bounds() -> None:
    assert [enlarged(*shape) for shape in ((1, 2600), (2600, 1), (1, 1), (300, 400), (5000, 6000))] == [1, 1, 600, 2, 1]
    drawing = draw_prediction(np.zeros((1, 2600, 3), np.uint8), Sample(), None, None, 0.3)
    assert drawing.shape == (CAPTION + 1, 2600, 3)


def test_drawings_have_the_same_names_in_every_process_and_no_two_the_same() -> None:
    paths = ["/d/x/a.png", "/d/x/a.jpg", "/d/y/a.png", "/d/y/A.png", "/d/z.png"]
    names = drawing_names(paths)
    assert [names[path] for path in paths] == ["x/a", "x/a_2", "y/a", "y/A_2", "z"]
    assert drawing_names(["d/a.png"]) == {"d/a.png": "a"}
    assert drawing_names([]) == {}


def test_a_full_disk_ends_drawing_and_not_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for path in paths:
        Image.new("RGB", (20, 20)).save(path)
    written: list[Path] = []

    def until_full(path: Path, content: bytes) -> None:
        if written:
            raise OutputError(f"{path} cannot be written: No space left on device")
        written.append(path)

    monkeypatch.setattr(hooks, "write_whole", until_full)
    said: list[str] = []
    logger = SimpleNamespace(error=said.append, info=said.append)
    entries = {
        path: (lambda info: np.zeros((20, 20, 3), np.uint8), SimpleNamespace(get_data_info=int), 0) for path in paths
    }
    monkeypatch.setattr(hooks, "entries_by_path", lambda dataset: entries)
    dataset = SimpleNamespace(metainfo={})
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=dataset), logger=logger)
    hook = ImagesHook(str(tmp_path / "out"))
    for path in paths:
        hook.after_test_iter(runner, 0, outputs=[Sample(img_path=path)])
    hook.after_test_epoch(runner)
    assert said == [
        f"{tmp_path}/out/1_gt_pred.png cannot be written: No space left on device; no more is drawn, and the test "
        "goes on",
        f"drawings: {tmp_path}/out (1 file)",
    ]


def test_objects_that_no_step_has_loaded_are_not_drawn() -> None:
    image = np.zeros((30, 40, 3), np.uint8)
    expected = draw_pair(image, Sample(), None, None, 0.3)
    assert np.array_equal(draw_pair(image, Sample(gt_instances=InstanceData()), None, None, 0.3), expected)
