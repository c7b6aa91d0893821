# 368,750 iterations, which are 50 epochs of COCO: the rate divided by 10 after 327,778 and 355,092 (Mask2Former).
train_cfg = dict(type="IterBasedTrainLoop", max_iters=368750, val_interval=7375)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

param_scheduler = [
    dict(type="MultiStepLR", by_epoch=False, begin=0, end=368750, milestones=[327778, 355092], gamma=0.1),
]

# 8 GPUs with 2 images each.
auto_scale_lr = dict(enable=False, base_batch_size=16)
