# Swin's detectors: a decay of 0.05, and none on norms and position tables.
_base_ = "adamw.py"

optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.0))),
)
