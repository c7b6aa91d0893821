# As own_epochs.py, in iterations.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=4000, val_interval=400)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=False),
]
auto_scale_lr = dict(enable=False, base_batch_size=2)
