# The demo: RetinaNet with PVTv2-B0, from random weights, on the aerial photographs of `trees`; a few minutes on a CPU.
#   make demo, or: python tools/prepare_data.py trees && python tools/train.py configs/retinanet_pvt_v2_b0_trees.py
# No published result: `trees` is a small set made for trying things out, no benchmark.
_base_ = [
    "_base_/models/retinanet_pvt.py",
    "_base_/datasets/trees_detection.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.PVTv2", arch="b0", drop_path_rate=0.0, init_cfg=None),
    neck=dict(in_channels=[64, 160, 256], out_channels=128),
    bbox_head=dict(
        num_classes=1,
        in_channels=128,
        feat_channels=128,
        stacked_convs=2,
        norm_cfg=dict(type="GN", num_groups=16, requires_grad=True),
    ),
)

max_epochs = 45
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=5)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", T_max=max_epochs, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True),
]
auto_scale_lr = dict(enable=False, base_batch_size=4)

default_hooks = dict(logger=dict(interval=5))
log_processor = dict(window_size=10)
