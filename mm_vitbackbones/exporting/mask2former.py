"""Mask2Former of MMDetection and MMSegmentation as a module from an image to tensors.

The library's pixel decoder makes tensors of the maps' sizes, which become numbers of the traced image. Here sizes are
counted along the maps, as in DINO's file. The head's own layers are called.

Source: Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", arXiv 2112.01527.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm_vitbackbones.exporting import dino
from mm_vitbackbones.exporting.parts import Features
from mm_vitbackbones.exporting.preprocessing import Preprocess, Preprocessing

QUERIES = ("scores", "masks")
"""The outputs of all queries: (B, Q, K + 1), before the softmax, whose last class is "no object"; and (B, Q, H, W),
before the sigmoid, at the size of the finest map."""


def is_known(head: Any) -> bool:
    """Whether a head is the Mask2Former of one of the libraries, in all parts that predict."""
    from mmcv.cnn.bricks.transformer import FFN, MultiheadAttention
    from mmcv.ops import MultiScaleDeformableAttention
    from mmdet.models.dense_heads import Mask2FormerHead
    from mmdet.models.layers import MSDeformAttnPixelDecoder, SinePositionalEncoding
    from mmdet.models.layers.transformer import mask2former_layers as layers
    from mmdet.models.layers.transformer.deformable_detr_layers import DeformableDetrTransformerEncoderLayer

    if not isinstance(head, Mask2FormerHead):
        return False
    pixels, decoder = head.pixel_decoder, head.transformer_decoder
    if type(pixels) is not MSDeformAttnPixelDecoder or type(decoder) is not layers.Mask2FormerTransformerDecoder:
        return False
    positions = (pixels.postional_encoding, head.decoder_positional_encoding)
    inner = [layer.self_attn for layer in pixels.encoder.layers]
    outer = [attention for layer in decoder.layers for attention in (layer.cross_attn, layer.self_attn)]
    return (
        type(head).forward is Mask2FormerHead.forward
        and type(head)._forward_head is Mask2FormerHead._forward_head
        and all(type(each) is SinePositionalEncoding for each in positions)
        and type(pixels.encoder) is layers.Mask2FormerTransformerEncoder
        and all(type(layer) is DeformableDetrTransformerEncoderLayer for layer in pixels.encoder.layers)
        and all(type(layer) is layers.Mask2FormerTransformerDecoderLayer for layer in decoder.layers)
        and all(type(layer.ffn) is FFN for layer in (*pixels.encoder.layers, *decoder.layers))
        and all(type(attention) is MultiScaleDeformableAttention for attention in inner)
        and all(dino.is_plain_attention(attention, MultiheadAttention) for attention in outer)
    )


class Queries(nn.Module):
    """Maps (B, C, H, W) of all levels to the scores and masks of all queries. See ``QUERIES``."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.pixels, self.decoder = head.pixel_decoder, head.transformer_decoder
        self.projections, self.level_embed = head.decoder_input_projs, head.level_embed
        self.positions = head.decoder_positional_encoding
        self.query_feat, self.query_embed = head.query_feat, head.query_embed
        self.cls_embed, self.mask_embed = head.cls_embed, head.mask_embed
        self.levels = int(head.num_transformer_feat_level)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        finest, coarse = self._pixels(maps)
        memory, places = [], []
        for index, map in enumerate(coarse):
            tokens = self.projections[index](map).flatten(2).transpose(1, 2)
            memory.append(tokens + self.level_embed.weight[index])
            places.append(_position(self.positions, map))
        query = self.query_feat.weight.expand(maps[0].shape[0], -1, -1)
        position = self.query_embed.weight
        masks = self._masks(query, finest)
        for index, layer in enumerate(self.decoder.layers):
            level = index % self.levels
            allowed = _allowed(masks, coarse[level])
            query = dino.attend_to_all(
                layer.cross_attn, query, position, memory[level], places[level], allowed[:, None]
            )
            query = layer.norms[0](query)
            query = layer.norms[1](dino.attend_to_all(layer.self_attn, query, position))
            query = layer.norms[2](layer.ffn(query))
            masks = self._masks(query, finest)
        return self.cls_embed(self.decoder.post_norm(query)).float(), masks.float()

    def _masks(self, query: Tensor, finest: Tensor) -> Tensor:
        """Queries (B, Q, C) and the finest map (B, C, H, W) -> (B, Q, H, W)."""
        products = self.mask_embed(self.decoder.post_norm(query)) @ finest.flatten(2)
        return products.unflatten(2, tuple(finest.shape[2:]))

    def _pixels(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The finest map of the pixel decoder, and those that the queries look at, from the coarsest on."""
        pixels = self.pixels
        count, first = pixels.num_encoder_levels, pixels.num_input_levels - 1
        chosen = [maps[first - index] for index in range(count)]
        ones = [torch.ones_like(map[0, 0], dtype=torch.float32) for map in chosen]
        levels = [dino.level_of(map, one[:, 0], one[0]) for map, one in zip(chosen, ones, strict=True)]
        tokens, positions = [], []
        for index, map in enumerate(chosen):
            tokens.append(pixels.input_convs[index](map).flatten(2).transpose(1, 2))
            positions.append(_position(pixels.postional_encoding, map) + pixels.level_encoding.weight[index])
        query, position = torch.cat(tokens, 1), torch.cat(positions, 1)
        at = torch.cat([level.centres for level in levels])[None, :, None].expand(-1, -1, count, -1)
        for layer in pixels.encoder.layers:
            query = layer.norms[0](dino.attend(layer.self_attn, query, position, query, at, levels))
            query = layer.norms[1](layer.ffn(query))
        parts = query.transpose(1, 2).split([level.height * level.width for level in levels], 2)
        found = [part.unflatten(2, (level.height, level.width)) for part, level in zip(parts, levels, strict=True)]
        for index in range(first - count, -1, -1):
            map = pixels.lateral_convs[index](maps[index])
            size = tuple(map.shape[2:])
            map = map + F.interpolate(found[-1], size=size, mode="bilinear", align_corners=False)
            found.append(pixels.output_convs[index](map))
        return pixels.mask_feature(found[-1]), found[: pixels.num_outs]


def _position(encoding: Any, map: Tensor) -> Tensor:
    """The positions of a map (B, C, H, W) without padding: (1, H * W, C)."""
    inside = torch.zeros_like(map[:1, 0], dtype=torch.bool)
    position: Tensor = encoding(inside).flatten(2).transpose(1, 2)
    return position


def _allowed(masks: Tensor, map: Tensor) -> Tensor:
    """Which cells of a map (B, C, H, W) a query may look at, (B, Q, H * W), bool: those in its mask so far, or all if
    there are none."""
    masks = F.interpolate(masks, size=tuple(map.shape[2:]), mode="bilinear", align_corners=False)
    inside = (masks.flatten(2).sigmoid() >= 0.5).float()
    return (inside > 0) | (inside.amax(-1, keepdim=True) == 0)


class QueriesFile(nn.Module):
    """An image (B, C, H, W) to the scores and masks of all queries. See ``QUERIES``."""

    def __init__(self, model: Any, how: Preprocessing) -> None:
        super().__init__()
        self.preprocess, self.features = Preprocess(how), Features(model)
        self.queries = Queries(model.panoptic_head)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        scores, masks = self.queries(self.features(self.preprocess(image)))
        return scores, masks


class Semantic(nn.Module):
    """Maps to the scores (B, K, H, W) of a segmentor's classes, at a size: over the queries, the sum of how likely each
    one is a class, times how likely each pixel is in its mask."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.queries = Queries(head)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, ...]) -> Tensor:
        scores, masks = self.queries(maps)
        masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
        classes = scores.softmax(-1)[..., :-1].transpose(1, 2)
        return (classes @ masks.sigmoid().flatten(2)).unflatten(2, size)
