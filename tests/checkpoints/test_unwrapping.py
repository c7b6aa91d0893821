"""The weights are found in whatever a file wraps them in."""

from __future__ import annotations

import pytest
import torch

from mm_vitbackbones.checkpoints import CheckpointError
from mm_vitbackbones.checkpoints.unwrapping import CONTAINERS, unwrap, unwrap_model

STATE = {"backbone.stages.0.w": torch.ones(2), "neck.b": torch.zeros(1)}
OTHER = {key: tensor + 1 for key, tensor in STATE.items()}


def same(state, expected=STATE):
    return state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.mark.parametrize("outer", [None, *CONTAINERS])
@pytest.mark.parametrize("inner", CONTAINERS)
def test_each_container_is_opened_alone_and_in_another(inner, outer):
    content = {inner: STATE, "epoch": 3}
    weights = unwrap({outer: content, "args": None} if outer else content)
    assert same(weights.state)
    assert set(weights.besides) == ({"epoch", "args"} if outer else {"epoch"})
    assert not weights.notes


@pytest.mark.parametrize(
    ("first", "second"),
    [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("state_dict", "model"), ("teacher", "student")],
)
def test_of_several_the_first_is_taken_and_the_log_says_so(first, second):
    weights = unwrap({second: OTHER, first: STATE})
    assert same(weights.state)
    assert weights.notes == (f"the file holds weights under {first}, {second}: those under {first} were taken",)
    assert weights.besides == (second,)


def test_a_container_without_tensors_is_none():
    weights = unwrap({"state_dict": {}, "model": {"type": "RetinaNet"}, "model_ema": STATE})
    assert same(weights.state)
    assert not weights.notes


def test_what_holds_itself_comes_to_an_end():
    content: dict = {"epoch": 1}
    content |= dict.fromkeys(CONTAINERS, content)
    with pytest.raises(CheckpointError, match="holds no state dict"):
        unwrap(content)


@pytest.mark.parametrize(
    "key",
    [
        "_orig_mod.backbone.w",
        "backbone._orig_mod.w",
        "_orig_mod.module.backbone.w",
        "module._orig_mod.backbone.w",
        "module.backbone._orig_mod._orig_mod.w",
        "module.module.backbone.w",
    ],
)
def test_names_are_those_of_the_plain_model(key):
    assert [*unwrap_model({"model": {key: torch.ones(1)}}).state] == ["backbone.w"]


def test_a_name_that_only_looks_like_a_prefix_stays():
    names = ["my_orig_mod.w", "backbone.module.w", "submodule.w"]
    assert [*unwrap_model({key: torch.ones(1) for key in names}).state] == names


def test_two_keys_of_one_name_are_refused():
    with pytest.raises(CheckpointError, match=r"two keys of the file stand for w, the second is _orig_mod\.w"):
        unwrap({"w": torch.ones(1), "_orig_mod.w": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"two keys of the file stand for w, the second is module\.w"):
        unwrap_model({"w": torch.ones(1), "module.w": torch.ones(1)})


def test_keys_that_are_no_text_are_named_by_their_type():
    content = {torch.zeros(2000).untyped_storage(): 1, (1, 2): 2, 3: torch.ones(1), "a": torch.ones(1), None: 0}
    assert unwrap(content).besides == ("a UntypedStorage", "a tuple", "3", "a NoneType")
