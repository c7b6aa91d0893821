# PiT-Small with SegFormer's decoder on ADE20K: 160,000 iterations, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/segformer_pit_s_ade20k.py 8
# No published result: ours, by SegFormer's recipe, untested. Level 0 starts from random weights: PiT has none.
_base_ = [
    "_base_/models/segformer.py",
    "_base_/datasets/ade20k_segmentation.py",
    "_base_/optimizers/ade20k_segformer.py",
    "_base_/schedules/iterations_160k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(type="mm_vitbackbones.PiT", arch="s"),
    decode_head=dict(in_channels=[144, 144, 288, 576], channels=768),
)
