# From pretrained weights on data of one's own, for any backbone: a decay of 0.05, none on norms, gradients clipped.
_base_ = "adamw.py"

optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
    clip_grad=dict(max_norm=10.0),
)
