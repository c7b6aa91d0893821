"""The number of classes: in the heads of a model, and in the weights of their losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from mm_vitbackbones.errors import UserError, counted
from mm_vitbackbones.nodes import heads, nodes, type_name

THINGS, STUFF = "num_things_classes", "num_stuff_classes"


def check_num_classes(model: Any, count: int, where: str) -> None:
    """Check that every head predicts as many classes as the data set has, and that its loss has a weight for each.

    Args:
        count: of the data set.
        where: the parts of the config that have the data set.

    Raises:
        UserError: for the first head that does not.
    """
    has = counted(count, "class", "classes")
    other_classes = "or metainfo=dict(classes=(...)) of the dataset"
    for path, head in heads(model):
        if head["num_classes"] != count:
            raise UserError(
                f"{path}.num_classes={head['num_classes']}, but the data set of {where} has {has}; "
                f"set {path}.num_classes={count}, {other_classes}"
            )
        _check_weights(path, head, count)
    for path, head in panoptic_heads(model):
        things, stuff = head[THINGS], head[STUFF]
        if things + stuff != count:
            right = f"{path}.{THINGS}={count}" if stuff == 0 else f"{path}.{THINGS} and {path}.{STUFF}"
            raise UserError(
                f"{path} has {things} classes of things and {stuff} of stuff, but the data set of {where} has {has}; "
                f"set {right}, {other_classes}"
            )
        _check_weights(path, head, count)


def panoptic_heads(model: Any) -> Iterator[tuple[str, MutableMapping[str, Any]]]:
    """The parts of a model's config that count the classes of things and of stuff, with their paths."""
    for path, node in nodes(model, "model"):
        if isinstance(node, MutableMapping) and all(isinstance(node.get(key), int) for key in (THINGS, STUFF)):
            yield path, node


def _check_weights(path: str, head: Mapping[str, Any], count: int) -> None:
    """Check the length of a loss's weights of classes. A softmax of objects has one more class: the background, or no
    object."""
    for key, length in (("loss_cls", count + 1), ("loss_decode", count)):
        losses = head.get(key)
        for loss in losses if isinstance(losses, (list, tuple)) else [losses]:
            if not isinstance(loss, Mapping) or type_name(loss) != "CrossEntropyLoss" or loss.get("use_sigmoid"):
                continue
            given = loss.get("class_weight")
            if isinstance(given, (list, tuple)) and len(given) != length:
                last = ", the last for what is no object" if length > count else ""
                raise UserError(
                    f"{path}.{key}.class_weight has {counted(len(given), 'weight')}, and for "
                    f"{counted(count, 'class', 'classes')} there have to be {length}{last}"
                )


def set_num_classes(model: Any, count: int) -> None:
    """Give every head a number of classes. Where all classes weigh the same in its loss, the new ones do, too.

    A head of things and stuff gets it if it has no stuff.
    """
    for _, head in heads(model):
        _resize_weights(head, head["num_classes"], count)
        head["num_classes"] = count
    for _, head in panoptic_heads(model):
        if head[STUFF] == 0:
            _resize_weights(head, head[THINGS], count)
            head[THINGS] = count


def _resize_weights(head: Mapping[str, Any], old: int, count: int) -> None:
    loss = head.get("loss_cls")
    if not isinstance(loss, MutableMapping):
        return
    given = loss.get("class_weight")
    if isinstance(given, (list, tuple)) and len(given) == old + 1 and len({*given[:-1]}) == 1:
        loss["class_weight"] = [given[0]] * count + [given[-1]]
