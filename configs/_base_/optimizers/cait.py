# CaiT's detectors, by Swin's recipe: a decay of 0.05, and none on norms and positions.
_base_ = "adamw.py"

optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={"stem.position.": dict(decay_mult=0.0)}),
)
