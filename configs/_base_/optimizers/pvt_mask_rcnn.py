# PVT's and PVTv2's Mask R-CNN: twice RetinaNet's rate.
_base_ = "adamw.py"

optim_wrapper = dict(optimizer=dict(lr=2e-4))
