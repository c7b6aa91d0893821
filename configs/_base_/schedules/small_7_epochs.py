# As small_12_epochs.py, with the 7 epochs that a two-stage detector does in a dozen minutes.
_base_ = "small_12_epochs.py"

train_cfg = dict(max_epochs=7, val_interval=7)
param_scheduler = [
    _base_.param_scheduler[0],  # the warm-up
    dict(_base_.param_scheduler[1], T_max=7),
]
