# 67,500 iterations, which are 36 epochs of COCO: the rate divided by 10 after 52,500 and 62,500 (MViTv2).
_base_ = "iterations_184375.py"

train_cfg = dict(max_iters=67500, val_interval=7500)
param_scheduler = [
    _base_.param_scheduler[0],  # the warm-up
    dict(_base_.param_scheduler[1], end=67500, milestones=[52500, 62500]),
]
