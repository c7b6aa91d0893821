# As mask2former.py, for Swin: position tables decay no more than norms do.
_base_ = "mask2former.py"

optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(relative_position_bias_table=dict(lr_mult=0.1, decay_mult=0.0))),
)
