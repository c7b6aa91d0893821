# Of the linear probe of DINOv3: a decay of 1e-3.
_base_ = "ade20k_linear.py"

optim_wrapper = dict(optimizer=dict(weight_decay=1e-3))
