# AdamW of MMSegmentation's ViTs on ADE20K: class tokens and positions decay no more than norms do.
_base_ = "ade20k.py"

optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"class_tokens": dict(decay_mult=0.0), "position": dict(decay_mult=0.0)})
)
