# 160,000 iterations: 1,500 of warm-up, then a straight line to 0 (SegFormer and Swin on ADE20K).
train_cfg = dict(type="IterBasedTrainLoop", max_iters=160000, val_interval=16000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=160000),
]

# 8 GPUs with 2 images each.
auto_scale_lr = dict(enable=False, base_batch_size=16)
