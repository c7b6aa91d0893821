"""DINO of MMDetection as a module from an image to tensors, for images of any size in a batch of one size.

MMDetection makes masks, positions and proposals of lists of samples and of tables of sizes. Here they are counted along
the maps, so that no step depends on a number of Python. The detector's own layers are called.

Source: Zhang et al., "DINO: DETR with Improved DeNoising Anchor Boxes", arXiv 2203.03605; Zhu et al.,
"Deformable DETR", arXiv 2010.04159.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.errors import UserError
from mm_vitbackbones.exporting import choices
from mm_vitbackbones.exporting.parts import PROBE, Features, maps_of_probe
from mm_vitbackbones.exporting.preprocessing import Preprocess, Preprocessing
from mm_vitbackbones.ops import anysize

QUERIES = ("scores", "boxes")
"""The outputs of all queries: (B, Q, K), before the sigmoid, and (B, Q, 4): x and y of the centre, width and height, as
parts of the image."""


def is_known(model: Any) -> bool:
    """Whether a detector is MMDetection's DINO, in all parts that predict."""
    from mmcv.cnn.bricks.transformer import FFN, MultiheadAttention
    from mmcv.ops import MultiScaleDeformableAttention
    from mmdet.models.dense_heads import DINOHead
    from mmdet.models.detectors.dino import DINO
    from mmdet.models.layers.transformer import deformable_detr_layers as layers
    from mmdet.models.layers.transformer.dino_layers import DinoTransformerDecoder

    if type(model) is not DINO or type(model.bbox_head) is not DINOHead:
        return False
    if type(model.encoder) is not layers.DeformableDetrTransformerEncoder:
        return False
    if type(model.decoder) is not DinoTransformerDecoder:
        return False
    deformable = [layer.self_attn for layer in model.encoder.layers]
    deformable += [layer.cross_attn for layer in model.decoder.layers]
    return (
        all(type(layer) is layers.DeformableDetrTransformerEncoderLayer for layer in model.encoder.layers)
        and all(type(layer) is layers.DeformableDetrTransformerDecoderLayer for layer in model.decoder.layers)
        and all(type(layer.ffn) is FFN for layer in (*model.encoder.layers, *model.decoder.layers))
        and all(type(attention) is MultiScaleDeformableAttention for attention in deformable)
        and all(is_plain_attention(layer.self_attn, MultiheadAttention) for layer in model.decoder.layers)
    )


def is_plain_attention(attention: Any, kind: type) -> bool:
    """Whether an attention of mmcv is PyTorch's with one table of weights for queries, keys and values."""
    inner = attention.attn
    return (
        type(attention) is kind
        and type(inner) is nn.MultiheadAttention
        and inner.in_proj_weight is not None
        and inner.bias_k is None
        and not inner.add_zero_attn
    )


def smallest_side(model: Any, how: Preprocessing) -> int:
    """The side of the smallest square image whose maps have a cell for each query. Any image with both sides as long
    has enough."""
    strides = [PROBE // map.shape[2] for map in maps_of_probe(model)]

    def cells(side: int) -> int:
        padded = side + anysize.lack(side, how.divisor)
        return sum(anysize.ceil_div(padded, stride) ** 2 for stride in strides)

    return next(side for side in itertools.count(1) if cells(side) >= model.num_queries)


@dataclass(frozen=True)
class Level:
    """One of the maps that the transformer reads. All images of a batch have the same."""

    height: Any
    width: Any
    inside: Tensor
    """(H * W,), bool: whether a cell belongs to the image, and not to its padding."""
    centres: Tensor
    """(H * W, 2): x and y of each cell's centre, as parts of the image without its padding."""
    ratio: Tensor
    """(2,): the parts of the map's width and height that the image takes."""
    cells: Tensor
    """(2,): the map's width and height, in single precision."""


class Dino(nn.Module):
    """An image to the scores and boxes of all queries (see ``QUERIES``), or to the boxes of the prediction."""

    def __init__(self, model: Any, how: Preprocessing, predicts: bool) -> None:
        super().__init__()
        self.preprocess, self.features, self.predicts = Preprocess(how), Features(model), predicts
        self.encoder, self.decoder, self.head = model.encoder, model.decoder, model.bbox_head
        self.positions, self.level_embed = model.positional_encoding, model.level_embed
        self.memory_trans_fc, self.memory_trans_norm = model.memory_trans_fc, model.memory_trans_norm
        self.query_embedding, self.queries = model.query_embedding, int(model.num_queries)
        head = model.bbox_head
        self.by_sigmoid, self.classes = bool(head.loss_cls.use_sigmoid), int(head.num_classes)
        self.most = int(head.test_cfg.get("max_per_img", self.queries))
        largest = self.queries * self.classes if self.by_sigmoid else self.queries
        if predicts and self.most > largest:
            raise UserError(
                f"test_cfg.max_per_img={self.most}: {self.queries} queries of {self.classes} classes give at most "
                f"{largest} boxes"
            )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.features(self.preprocess(image))
        rows, columns = self._inside(image)
        levels = [level_of(map, rows, columns) for map in maps]
        count = sum(level.height * level.width for level in levels)
        if isinstance(count, int) and count < self.queries:
            raise UserError(
                f"an image of {image.shape[2]}x{image.shape[3]} has {count} cells in all levels, fewer than the "
                f"{self.queries} queries: give a larger one"
            )
        memory = self._encode(maps, levels)
        scores, boxes = self._decode(memory, self._proposals(memory, levels), levels)
        if not self.predicts:
            return scores, boxes
        return self._best(scores, boxes, torch.stack((columns.sum(), rows.sum())))

    def _inside(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Of each row and column of the padded image, whether it is the image's: 1 or 0."""
        ones = torch.ones_like(image[:1, :1], dtype=torch.float32)
        padded = self.preprocess.padded(ones, 0.0)
        return padded[0, 0, :, 0], padded[0, 0, 0]

    def _encode(self, maps: Sequence[Tensor], levels: Sequence[Level]) -> Tensor:
        """The tokens of all levels, (B, N, C), after the encoder."""
        tokens, positions = [], []
        for index, (map, level) in enumerate(zip(maps, levels, strict=True)):
            outside = ~level.inside.reshape(1, level.height, level.width)
            position = self.positions(outside).flatten(2).transpose(1, 2) + self.level_embed[index]
            tokens.append(map.flatten(2).transpose(1, 2))
            positions.append(position)
        query, position = torch.cat(tokens, 1), torch.cat(positions, 1)
        centres = torch.cat([level.centres for level in levels])
        at = centres[:, None] * torch.stack([level.ratio for level in levels])  # (N, L, 2)
        for layer in self.encoder.layers:
            query = layer.norms[0](attend(layer.self_attn, query, position, query, at[None], levels))
            query = layer.norms[1](layer.ffn(query))
        return query

    def _proposals(self, memory: Tensor, levels: Sequence[Level]) -> Tensor:
        """The boxes (B, Q, 4) that the queries begin with: those of the tokens with the highest scores."""
        boxes = []
        for index, level in enumerate(levels):
            sides = torch.full_like(level.centres, 0.05 * 2.0**index)
            boxes.append(torch.cat((level.centres, sides), -1))
        box = torch.cat(boxes)  # (N, 4)
        inside = torch.cat([level.inside for level in levels])
        valid = (inside & ((box > 0.01) & (box < 0.99)).all(-1))[:, None]
        prior = torch.where(valid, torch.log(box / (1 - box)), torch.inf)
        tokens = self.memory_trans_norm(self.memory_trans_fc(torch.where(valid, memory, 0.0)))
        last = len(self.decoder.layers)
        scores = self.head.cls_branches[last](tokens).float().amax(-1)
        # As many more as there are queries, so that the choice asks for no size; a larger image never takes them.
        scores = torch.cat((scores, torch.full_like(scores[:, :1], -torch.inf).expand(-1, self.queries)), 1)
        at = choices.highest(scores, self.queries, -torch.inf)[1][..., None]
        found = self.head.reg_branches[last](tokens).float() + prior
        boxes_of_queries: Tensor = found.gather(1, at.expand(-1, -1, 4)).sigmoid()
        return boxes_of_queries

    def _decode(self, memory: Tensor, boxes: Tensor, levels: Sequence[Level]) -> tuple[Tensor, Tensor]:
        """Scores and boxes of all queries."""
        from mmdet.models.layers.transformer.utils import coordinate_to_encoding, inverse_sigmoid

        query = self.query_embedding.weight.expand(memory.shape[0], -1, -1)
        ratios = torch.stack([torch.cat((level.ratio, level.ratio)) for level in levels])  # (L, 4)
        last = len(self.decoder.layers) - 1
        for index, layer in enumerate(self.decoder.layers):
            at = boxes[:, :, None] * ratios
            position = self.decoder.ref_point_head(coordinate_to_encoding(at[:, :, 0]))
            query = layer.norms[0](attend_to_all(layer.self_attn, query, position))
            query = layer.norms[1](attend(layer.cross_attn, query, position, memory, at, levels))
            query = layer.norms[2](layer.ffn(query))
            if index < last:  # the last boxes are those of the head
                moved = self.head.reg_branches[index](query).float()
                boxes = (moved + inverse_sigmoid(boxes, eps=1e-3)).sigmoid()
        state = self.decoder.norm(query)
        scores = self.head.cls_branches[last](state).float()
        moved = self.head.reg_branches[last](state).float()
        return scores, (moved + inverse_sigmoid(boxes)).sigmoid()

    def _best(self, scores: Tensor, boxes: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The pairs of a query and a class with the highest scores, from the highest down; and the boxes in pixels of
        an image whose width and height are ``size``."""
        if self.by_sigmoid:
            scores, at = choices.highest(scores.sigmoid().flatten(1), self.most)
            labels, at = at % self.classes, at // self.classes
        else:
            best, label = choices.highest(scores.softmax(-1, dtype=torch.float32)[..., :-1].flatten(0, 1), 1)
            best, label = best.reshape(scores.shape[:2]), label.reshape(scores.shape[:2])
            scores, at = choices.highest(best, self.most)
            labels = label.gather(1, at)
        boxes = boxes.gather(1, at[..., None].expand(-1, -1, 4))
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        corners = [torch.minimum((corner * size).clamp(min=0), size) for corner in (centre - half, centre + half)]
        return torch.cat(corners, -1), scores, labels


def level_of(map: Tensor, rows: Tensor, columns: Tensor) -> Level:
    """What there is to know of a map (B, C, H, W), of an image whose rows and columns say where its padding is."""
    ones = torch.ones_like(map[0, 0], dtype=torch.float32)
    down, across = ones[:, 0].cumsum(0), ones[0].cumsum(0)  # 1, 2, ...
    high, wide = _nearest(rows, down), _nearest(columns, across)
    valid = torch.stack((wide.sum(), high.sum()))
    cells = torch.stack((across[-1], down[-1]))
    y, x = ones.cumsum(0) - 0.5, ones.cumsum(1) - 0.5
    inside = (high[:, None] * wide[None]).flatten() > 0
    height, width = map.shape[2:]
    return Level(height, width, inside, torch.stack((x, y), -1).flatten(0, 1) / valid, valid / cells, cells)


def _nearest(line: Tensor, counted: Tensor) -> Tensor:
    """Values of a line at the places of fewer cells, which are counted from 1: those that a nearest resize takes."""
    scale = torch.ones_like(line).sum() / counted[-1]
    return line.index_select(0, ((counted - 1) * scale).floor().long())


def attend(
    attention: Any, query: Tensor, position: Tensor, memory: Tensor, at: Tensor, levels: Sequence[Level]
) -> Tensor:
    """Deformable attention of mmcv: each query reads a few positions of each level around its own.

    Args:
        attention: a ``MultiScaleDeformableAttention``.
        query: (B, Q, C).
        position: (B or 1, Q, C), added to the queries that say where to read.
        memory: (B, N, C): the tokens of all levels.
        at: (B or 1, Q, L, 2), positions, or (B, Q, L, 4), boxes; as parts of the padded image.

    Returns:
        (B, Q, C), with the query added.
    """
    heads, points, count = attention.num_heads, attention.num_points, attention.num_levels
    batch, queries = query.shape[:2]
    asking = query + position
    offsets = attention.sampling_offsets(asking).float().reshape(batch, queries, heads, count, points, 2)
    weights = attention.attention_weights(asking).reshape(batch, queries, heads, count * points)
    weights = weights.softmax(-1, dtype=torch.float32)
    if at.shape[-1] == 2:
        cells = torch.stack([level.cells for level in levels])
        places = at[:, :, None, :, None] + offsets / cells[:, None]
    else:
        places = at[:, :, None, :, None, :2] + offsets / points * at[:, :, None, :, None, 2:] * 0.5
    grid = (places * 2 - 1).transpose(1, 2).flatten(0, 1)  # (B * heads, Q, L, P, 2)
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, count, points)
    inside = torch.cat([level.inside for level in levels])[:, None]
    values = torch.where(inside, attention.value_proj(memory).float(), 0.0)
    sizes = [level.height * level.width for level in levels]
    read = None
    for index, (value, level) in enumerate(zip(values.split(sizes, 1), levels, strict=True)):
        map = value.transpose(1, 2).reshape(batch * heads, -1, level.height, level.width)
        found = F.grid_sample(map, grid[:, :, index], mode="bilinear", padding_mode="zeros", align_corners=False)
        part = (found * weights[:, :, :, index]).sum(-1)
        read = part if read is None else read + part
    assert read is not None
    read = read.reshape(batch, -1, queries).transpose(1, 2)
    output: Tensor = query + attention.output_proj(read)
    return output


def attend_to_all(
    attention: Any,
    query: Tensor,
    position: Tensor,
    memory: Tensor | None = None,
    places: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Attention of mmcv among all queries, or of all queries to a memory. Positions are added to what asks and what is
    asked. The query is added to the result.

    Its weights are used, and it is not called: in half precision PyTorch's module would mix two precisions.

    Args:
        attention: a ``MultiheadAttention``.
        query: (B, Q, C).
        position: (B, Q, C), or with a batch of 1 or without it.
        memory: (B, N, C); the queries themselves without it.
        places: (B or 1, N, C), the positions of the memory.
        allowed: bool, (B, 1, Q, N): what a query may look at.
    """
    inner = attention.attn
    batch, queries, channels = query.shape
    asking = query + position
    asked = asking if memory is None or places is None else memory + places
    held = query if memory is None else memory
    tables = inner.in_proj_weight.chunk(3)
    shifts = (None,) * 3 if inner.in_proj_bias is None else inner.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(tokens, table, shift).unflatten(2, (inner.num_heads, -1)).transpose(1, 2)
        for tokens, table, shift in zip((asking, asked, held), tables, shifts, strict=True)
    )
    found = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    output: Tensor = query + inner.out_proj(found.transpose(1, 2).reshape(batch, queries, channels))
    return output
