"""ViT: its weights as the authors of DeiT, DeiT III, DINO, MAE and ViTDet publish them, and in other naming."""

from __future__ import annotations

import torch

from mm_vitbackbones.checkpoints.key_map import KeyMap, under
from mm_vitbackbones.checkpoints.layout import Family, Layout, State, Surgery
from mm_vitbackbones.checkpoints.record import (
    APACHE,
    BY_AUTHORS,
    BY_TIMM,
    CC_BY_NC,
    IN1K,
    IN21K_TO_1K,
    META,
    UNLABELLED,
    PublishedFile,
    size_of,
)
from mm_vitbackbones.checkpoints.surgery import inverse, rows
from mm_vitbackbones.checkpoints.tables.columnar import (
    CLASS_TOKENS,
    MLP,
    NORMS,
    NOT_TAPPED,
    OUR_NAMES,
    POSITION,
    POSITIONS,
    PYRAMID,
    SPLIT_POSITIONS,
    STEM,
    TABLE,
)

CLASS, DISTILLATION = "stem.class_token", "stem.distillation_token"


def _join_tokens(state: State) -> State:
    tokens = [state[name] for name in (CLASS, DISTILLATION) if name in state]
    rest = {key: tensor for key, tensor in state.items() if key not in (CLASS, DISTILLATION)}
    return rest | ({CLASS_TOKENS: torch.cat(tokens, dim=1)} if tokens else {})


def _split_tokens(state: State) -> State:
    if (tokens := state.get(CLASS_TOKENS)) is None:
        return state
    names = (CLASS, DISTILLATION)[: tokens.shape[1]]
    rest = {key: tensor for key, tensor in state.items() if key != CLASS_TOKENS}
    return rest | dict(zip(names, tokens.split(1, dim=1), strict=True))


TOKENS = Surgery(_join_tokens, _split_tokens)
"""The class token and the distillation token are two."""

# ViTDet's pyramid: a level's layers by their number in the file, and the module that each is here.
_SIMPLE = {
    2: {0: "resizes.0.0", 1: "resizes.0.1", 3: "resizes.0.3", 4: "projections.0.0", 5: "projections.0.2"},
    3: {0: "resizes.1.0", 1: "projections.1.0", 2: "projections.1.2"},
    4: {0: "projections.2.0", 1: "projections.2.2"},
    5: {1: "projections.3.0", 2: "projections.3.2"},
}
_PYRAMID = []
for _level, _layers in _SIMPLE.items():
    for _number, _ours in _layers.items():
        _theirs, _ours = f"simfp_{_level}.{_number}.", f"pyramid.{_ours}."
        _convolution = "projections" in _ours
        _PYRAMID += [
            (f"{_theirs}{_part}", f"{_ours}{_part}") for _part in ("weight", "bias")[: 1 if _convolution else 2]
        ]
        if _convolution:
            _norm = f"{_ours[:-2]}{int(_ours[-2]) + 1}."
            _PYRAMID.append((f"{_theirs}norm.", _norm))

CLASSIFIER = [
    (f"{name}.", f"classifier.{name}.")
    for name in ("head", "head_dist", "pre_logits", "fc_norm", "decoder_embed", "decoder_blocks", "decoder_norm")
] + [(name, f"classifier.{name}") for name in ("mask_token", "decoder_pos_embed")]
STEM_NAMES = [
    ("patch_embed.proj.", "stem.proj."),
    ("pos_embed", TABLE),
    ("cls_token", CLASS),
    ("dist_token", DISTILLATION),
]
BLOCK = [
    *NORMS,
    ("attn.qkv.", "attn.qkv."),
    ("attn.proj.", "attn.proj."),
    ("attn.rel_pos_h", "attn.rows"),
    ("attn.rel_pos_w", "attn.columns"),
    *MLP,
]
MARKS = ("blocks.0.attn.qkv.weight", "patch_embed.proj.weight", "pos_embed")
OF_OTHERS = (
    "blocks.0.attn.pool_q.weight",  # MViT
    "blocks.0.attn.proj_l.weight",  # CaiT
    "blocks.0.attn.q_bias",  # BEiT
    "blocks.0.attn.temperature",  # XCiT
    "blocks.0.attn1.qkv.weight",  # two attentions side by side
    "patch_embed.backbone.stem.conv.weight",  # a hybrid with a ResNet
)

OFFICIAL = Layout(
    "official",
    MARKS,
    KeyMap(
        [
            *STEM_NAMES,
            *under("blocks.{block}.", "blocks.{block}.", [*BLOCK, ("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma")]),
            ("norm.", "norm."),
            *_PYRAMID,
            *CLASSIFIER,
        ]
    ),
    surgery=(SPLIT_POSITIONS, TOKENS),
    own_prefix="net.",  # ViTDet's, next to its pyramid
    without=(*OF_OTHERS, "blocks.0.ls1.gamma"),
)

# timm has the official names, except for DeiT III's factors.
TIMM = Layout(
    "timm",
    (*MARKS, "blocks.0.ls1.gamma"),
    KeyMap(
        [
            *STEM_NAMES,
            *under("blocks.{block}.", "blocks.{block}.", [*BLOCK, ("ls1.", "ls1."), ("ls2.", "ls2.")]),
            ("norm.", "norm."),
            *CLASSIFIER,
        ]
    ),
    surgery=OFFICIAL.surgery,
    without=(*OF_OTHERS, "reg_token", "register_tokens", "mask_token"),
)

HUGGINGFACE_STEM = [
    ("embeddings.patch_embeddings.projection.", "stem.proj."),
    ("embeddings.position_embeddings", TABLE),
    ("embeddings.cls_token", CLASS),
    ("embeddings.distillation_token", DISTILLATION),
    ("embeddings.mask_token", "classifier.mask_token"),
    ("layernorm.", "norm."),
]
JOIN_QKV = inverse(rows("qkv", (("q", 1), ("k", 1), ("v", 1))))

HUGGINGFACE = Layout(
    "huggingface",
    (
        "encoder.layer.0.attention.attention.query.weight",
        "embeddings.position_embeddings",
        "encoder.layer.0.layernorm_before.weight",
    ),
    KeyMap(
        [
            *HUGGINGFACE_STEM,
            *under(
                "encoder.layer.{block}.",
                "blocks.{block}.",
                [
                    ("layernorm_before.", "norm1."),
                    ("attention.attention.query.", "attn.q."),
                    ("attention.attention.key.", "attn.k."),
                    ("attention.attention.value.", "attn.v."),
                    ("attention.output.dense.", "attn.proj."),
                    ("layernorm_after.", "norm2."),
                    ("intermediate.dense.", "ffn.fc1."),
                    ("output.dense.", "ffn.fc2."),
                ],
            ),
        ]
    ),
    surgery=(JOIN_QKV, SPLIT_POSITIONS, TOKENS),
)

# The names of transformers 5.
HUGGINGFACE5 = Layout(
    "huggingface5",
    ("layers.0.attention.q_proj.weight", "embeddings.position_embeddings", "layers.0.layernorm_before.weight"),
    KeyMap(
        [
            *HUGGINGFACE_STEM,
            *under(
                "layers.{block}.",
                "blocks.{block}.",
                [
                    ("layernorm_before.", "norm1."),
                    ("attention.q_proj.", "attn.q."),
                    ("attention.k_proj.", "attn.k."),
                    ("attention.v_proj.", "attn.v."),
                    ("attention.o_proj.", "attn.proj."),
                    ("layernorm_after.", "norm2."),
                    ("mlp.fc1.", "ffn.fc1."),
                    ("mlp.fc2.", "ffn.fc2."),
                ],
            ),
        ]
    ),
    surgery=HUGGINGFACE.surgery,
)

MMPRETRAIN = Layout(
    "openmmlab",
    ("layers.0.ln1.weight", "layers.0.attn.qkv.weight", "patch_embed.projection.weight", "pos_embed"),
    KeyMap(
        [
            ("patch_embed.projection.", "stem.proj."),
            *STEM_NAMES[1:],
            *under(
                "layers.{block}.",
                "blocks.{block}.",
                [
                    ("ln1.", "norm1."),
                    ("attn.qkv.", "attn.qkv."),
                    ("attn.proj.", "attn.proj."),
                    ("attn.gamma1.weight", "ls1.gamma"),
                    ("ln2.", "norm2."),
                    ("ffn.layers.0.0.", "ffn.fc1."),
                    ("ffn.layers.1.", "ffn.fc2."),
                    ("ffn.gamma2.weight", "ls2.gamma"),
                ],
            ),
            ("ln1.", "norm."),
        ]
    ),
    surgery=OFFICIAL.surgery,
)

MMSEG = Layout(
    "mmseg",
    ("layers.0.attn.attn.in_proj_weight", "patch_embed.projection.weight", "pos_embed"),
    KeyMap(
        [
            ("patch_embed.projection.", "stem.proj."),
            *STEM_NAMES[1:3],
            *under(
                "layers.{block}.",
                "blocks.{block}.",
                [
                    ("ln1.", "norm1."),
                    ("attn.attn.in_proj_weight", "attn.qkv.weight"),
                    ("attn.attn.in_proj_bias", "attn.qkv.bias"),
                    ("attn.attn.out_proj.", "attn.proj."),
                    ("ln2.", "norm2."),
                    ("ffn.layers.0.0.", "ffn.fc1."),
                    ("ffn.layers.1.", "ffn.fc2."),
                ],
            ),
            ("ln1.", "norm."),
        ]
    ),
    surgery=OFFICIAL.surgery,
)

OURS = Layout(
    "ours",
    ("stem.position.table", "blocks.0.attn.qkv.weight"),
    OUR_NAMES,
    without=OF_OTHERS,
)


def _is_vit(ours: State) -> bool:
    """DeiT III alone has layer scale, and no positions for its class token; DINOv2 has both, or registers."""
    scaled = "blocks.0.ls1.gamma" in ours
    return "stem.registers" not in ours and not (scaled and POSITIONS in ours)


FAMILY = Family(
    "ViT",
    layouts=(OFFICIAL, TIMM, HUGGINGFACE, HUGGINGFACE5, MMPRETRAIN, MMSEG, OURS),
    adapters=(STEM, POSITION),
    may_be_fresh=(r"blocks\.\d+\.attn\.(rows|columns)", PYRAMID),
    # With windows or relative positions there are no class tokens.
    level_only=(*NOT_TAPPED, r"stem\.(class_tokens|token_positions)"),
    claims=_is_vit,
)

TIMM_FILES = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-vitjx"


def _timm_file(arch: str, sha256: str) -> PublishedFile:
    name, url = "imagenet21k_to_1k_384", f"{TIMM_FILES}/jx_vit_{arch.removesuffix('_384')}_p16_384-{sha256}.pth"
    return PublishedFile("ViT", arch, name, url, APACHE, BY_TIMM, IN21K_TO_1K, size_of(name), sha256=sha256)


def _deit(arch: str, file: str, sha256: str, top1: float, name: str = "imagenet1k") -> PublishedFile:
    url = f"{META}/deit/deit_{file}-{sha256}.pth"
    return PublishedFile("ViT", arch, name, url, APACHE, BY_AUTHORS, size=size_of(name), top1=top1, sha256=sha256)


def _deit3(arch: str, data: str, top1: float | None = None) -> PublishedFile:
    kind, _, size = arch.removeprefix("deit3_").partition("_")
    file = f"deit_3_{kind}_{size or 224}_{data}{'_v1' if (kind, data) == ('huge', '21k') else ''}"
    name = ("imagenet1k" if data == "1k" else "imagenet21k_to_1k") + (f"_{size}" if size else "")
    trained = IN1K if data == "1k" else IN21K_TO_1K
    return PublishedFile(
        "ViT", arch, name, f"{META}/deit/{file}.pth", APACHE, BY_AUTHORS, trained, int(size or 224), top1
    )


def _dino(arch: str, file: str) -> PublishedFile:
    url = f"{META}/dino/dino_{file}_pretrain/dino_{file}_pretrain.pth"
    return PublishedFile("ViT", arch, "dino", url, APACHE, BY_AUTHORS, UNLABELLED)


def _mae(arch: str) -> PublishedFile:
    url = f"{META}/mae/pretrain/mae_pretrain_vit_{arch}.pth"
    return PublishedFile("ViT", arch, "mae", url, CC_BY_NC, BY_AUTHORS, UNLABELLED)


FILES = (
    _deit("tiny", "tiny_patch16_224", "a1311bcf", 72.2),
    _deit("small", "small_patch16_224", "cd65a155", 79.9),
    _dino("small", "deitsmall16"),
    _deit("base", "base_patch16_224", "b5f2ef4d", 81.8),
    _dino("base", "vitbase16"),
    _mae("base"),
    _mae("large"),
    _mae("huge"),
    _dino("small_p8", "deitsmall8"),
    _dino("base_p8", "vitbase8"),
    _deit("base_384", "base_patch16_384", "8de9b5d1", 82.9, "imagenet1k_384"),
    _timm_file("large_384", "b3be5167"),
    _deit("tiny_distilled", "tiny_distilled_patch16_224", "b40b3cf7", 74.5),
    _deit("small_distilled", "small_distilled_patch16_224", "649709d9", 81.2),
    _deit("base_distilled", "base_distilled_patch16_224", "df68dfff", 83.4),
    _deit("base_distilled_384", "base_distilled_patch16_384", "d0272ac0", 85.2, "imagenet1k_384"),
    _deit3("deit3_small", "1k", 81.4),
    _deit3("deit3_small", "21k", 83.1),
    _deit3("deit3_medium", "1k", 83.0),
    _deit3("deit3_medium", "21k"),
    _deit3("deit3_base", "1k", 83.8),
    _deit3("deit3_base", "21k", 85.7),
    _deit3("deit3_large", "1k", 84.9),
    _deit3("deit3_large", "21k"),
    _deit3("deit3_huge", "1k"),
    _deit3("deit3_huge", "21k"),
    _deit3("deit3_small_384", "1k"),
    _deit3("deit3_small_384", "21k"),
    _deit3("deit3_base_384", "1k"),
    _deit3("deit3_base_384", "21k"),
    _deit3("deit3_large_384", "1k"),
    _deit3("deit3_large_384", "21k"),
)
