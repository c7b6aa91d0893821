# For what is trained on a frozen backbone, or in one: a decay of 0.05, and none on norms.
_base_ = "adamw.py"

optim_wrapper = dict(optimizer=dict(weight_decay=0.05), paramwise_cfg=dict(norm_decay_mult=0.0))
