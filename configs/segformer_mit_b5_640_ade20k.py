# SegFormer-B5 on ADE20K at 640 pixels: 160,000 iterations, 8 GPUs with 2 images each, crops of 640x640.
#   tools/dist_train.sh configs/segformer_mit_b5_640_ade20k.py 8
# Published (SegFormer paper, not measured here): mIoU 51.0, with --tta 51.8.
# The weights of MiT keep NVIDIA's non-commercial terms.
_base_ = [
    "_base_/models/segformer.py",
    "_base_/datasets/ade20k_640.py",
    "_base_/optimizers/ade20k_segformer.py",
    "_base_/schedules/iterations_160k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(
    data_preprocessor=dict(size={{_base_.crop_size}}),
    backbone=dict(arch="b5"),
    decode_head=dict(in_channels=[64, 128, 320, 512], channels=768),
)
