# Mask2Former's: a decay of 0.05, none on norms and embeddings, the backbone at a tenth of the rate, clipped to 0.01.
_base_ = "adamw.py"

embeddings = dict(lr_mult=1.0, decay_mult=0.0)
# MMEngine takes the longest key that is part of a name, in place of the rule for norms: each of these is longer than
# the key of the whole backbone. The heads' norms have other names.
norms_of_backbone = {
    f".{name}.{kind}": dict(lr_mult=0.1, decay_mult=0.0)
    for name in ("norm", "norm1", "norm2")
    for kind in ("weight", "bias")
}

optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={
            "backbone.": dict(lr_mult=0.1),
            **norms_of_backbone,
            "query_embed": embeddings,
            "query_feat": embeddings,
            "level_embed": embeddings,
        },
    ),
    clip_grad=dict(max_norm=0.01, norm_type=2),
)
