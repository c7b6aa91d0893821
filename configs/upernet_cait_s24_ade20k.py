# UPerNet with CaiT-S24 and a pyramid of four blocks on ADE20K: 160,000 iterations, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/upernet_cait_s24_ade20k.py 8
# No published result: ours, by Swin's recipe, untested.
_base_ = [
    "_base_/models/upernet_vit.py",
    "_base_/datasets/ade20k_unaligned.py",
    "_base_/optimizers/ade20k_cait.py",
    "_base_/schedules/iterations_160k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.CaiT", arch="s24", pyramid="taps", drop_path_rate=0.1),
    decode_head=dict(in_channels=[384] * 4),
    auxiliary_head=dict(in_channels=384),
)
