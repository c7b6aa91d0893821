# 40,000 iterations: 1,500 of warm-up, then a half cosine to 0 (the linear probe of DINOv3).
_base_ = "iterations_40k.py"

param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=1500, end=40000),
]
