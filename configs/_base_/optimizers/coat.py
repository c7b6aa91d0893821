# CoaT's detectors: a decay of 0.05 on all parameters.
_base_ = "adamw.py"

optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
