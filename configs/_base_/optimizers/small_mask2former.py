# As mask2former.py, from random weights: the backbone learns as fast as the rest.
_base_ = "mask2former.py"

optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"backbone.": dict(lr_mult=1.0)}))
