# Swin's: position tables decay no more than norms do.
_base_ = "ade20k.py"

optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(relative_position_bias_table=dict(decay_mult=0.0))))
