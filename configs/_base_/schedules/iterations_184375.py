# 184,375 iterations, which are 100 epochs of COCO: the rate divided by 10 after 163,889 and 177,546 (ViTDet).
train_cfg = dict(type="IterBasedTrainLoop", max_iters=184375, val_interval=7375)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type="MultiStepLR", by_epoch=False, begin=0, end=184375, milestones=[163889, 177546], gamma=0.1),
]

# 8 GPUs with 8 images each.
auto_scale_lr = dict(enable=False, base_batch_size=64)
