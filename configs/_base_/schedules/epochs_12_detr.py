# 12 epochs without a warm-up, the rate divided by 10 after 11 (DINO).
_base_ = "epochs_12.py"

param_scheduler = [dict(_base_.param_scheduler[1], milestones=[11])]
