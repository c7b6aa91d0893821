# Mask2Former's: a decay of 0.05, none on norms and embeddings, the backbone at a tenth of the rate, clipped to 0.01.
_base_ = "adamw.py"

embeddings = dict(lr_mult=1.0, decay_mult=0.0)

optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={
            "backbone.": dict(lr_mult=0.1),
            "query_embed": embeddings,
            "query_feat": embeddings,
            "level_embed": embeddings,
        },
    ),
    clip_grad=dict(max_norm=0.01, norm_type=2),
)
