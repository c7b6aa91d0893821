# CaiT's, by Swin's recipe: positions decay no more than norms do.
_base_ = "ade20k.py"

optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"stem.position.": dict(decay_mult=0.0)}))
