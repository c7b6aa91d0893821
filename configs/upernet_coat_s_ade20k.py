# UPerNet with CoaT-Small on ADE20K: 160,000 iterations, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/upernet_coat_s_ade20k.py 8
# No published result: ours, by Swin's recipe, untested.
_base_ = [
    "_base_/models/upernet.py",
    "_base_/datasets/ade20k_segmentation.py",
    "_base_/optimizers/ade20k.py",
    "_base_/schedules/iterations_160k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.CoaT", arch="small", drop_path_rate=0.2),
    decode_head=dict(in_channels=[152, 320, 320, 320]),
    auxiliary_head=dict(in_channels=320),
)
