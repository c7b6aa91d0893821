# ViTDet's: a decay of 0.1, none on the norms of blocks and on positions, and a rate that falls with the depth.
_base_ = "adamw.py"

optim_wrapper = dict(
    constructor="mm_vitbackbones.LayerDecayOptimWrapperConstructor",
    optimizer=dict(betas=(0.9, 0.999), weight_decay=0.1),
    paramwise_cfg=dict(
        layer_decay_rate=0.7,
        norm_decay_mult=0.0,
        custom_keys={
            "backbone.stem.position.": dict(decay_mult=0.0),
            "backbone.pyramid.": dict(decay_mult=1.0),  # norms of the pyramid and of the heads do decay
            "roi_head.": dict(decay_mult=1.0),
        },
    ),
)
