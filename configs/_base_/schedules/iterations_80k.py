# 80,000 iterations: 1,500 of warm-up, then a straight line to 0 (XCiT's Semantic FPN).
_base_ = "iterations_160k.py"

train_cfg = dict(max_iters=80000, val_interval=8000)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=80000)]
