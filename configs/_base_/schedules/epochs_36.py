# 3x: 36 epochs, the rate divided by 10 after 27 and 33.
_base_ = "epochs_12.py"

train_cfg = dict(max_epochs=36)
param_scheduler = [
    _base_.param_scheduler[0],  # the warm-up
    dict(_base_.param_scheduler[1], end=36, milestones=[27, 33]),
]
