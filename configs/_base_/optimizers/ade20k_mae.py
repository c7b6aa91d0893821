# AdamW of MAE on ADE20K: 1e-4, falling by 0.65 from block to block, a decay of 0.05, and none on what has one
# dimension, on class tokens and on positions.
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="mm_vitbackbones.LayerDecayOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        layer_decay_rate=0.65,
        flat_decay_mult=0.0,
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={"class_tokens": dict(decay_mult=0.0), "position": dict(decay_mult=0.0)},
    ),
)
