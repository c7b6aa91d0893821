# Training in minutes: 2,200 iterations at a falling cosine, 4 crops a step.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=2200, val_interval=1100)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", T_max=2200, eta_min=1e-6, by_epoch=False, begin=0, end=2200),
]
auto_scale_lr = dict(enable=False, base_batch_size=4)
