# RetinaNet with PVT-Tiny, from random weights, on the drawn scenes of `mini`: for comparing backbones.
#   python tools/prepare_data.py mini && python tools/train.py configs/retinanet_pvt_t_mini.py
# No published result: `mini` is a small set made for trying things out, no benchmark. See docs/embedded_data.md.
_base_ = [
    "_base_/models/retinanet_pvt.py",
    "_base_/datasets/mini_detection.py",
    "_base_/default_runtime.py",
]

model = dict(
    backbone=dict(arch="tiny", drop_path_rate=0.0, init_cfg=None),
    neck=dict(out_channels=128, num_outs=4),
    bbox_head=dict(
        num_classes=5,
        in_channels=128,
        feat_channels=128,
        stacked_convs=2,
        norm_cfg=dict(type="GN", num_groups=16, requires_grad=True),
        anchor_generator=dict(strides=[8, 16, 32, 64]),
    ),
)

max_epochs = 16
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=4)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2.5e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", T_max=max_epochs, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True),
]
auto_scale_lr = dict(enable=False, base_batch_size=2)

default_hooks = dict(logger=dict(interval=20))
log_processor = dict(window_size=20)
