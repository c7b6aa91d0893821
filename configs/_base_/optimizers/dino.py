# DINO's: the backbone at a tenth of the rate, and gradients clipped to 0.1.
_base_ = "adamw.py"

optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"backbone.": dict(lr_mult=0.1)}),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
