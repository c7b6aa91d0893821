# Mask2Former with MiT-B2 on ADE20K: 160,000 iterations, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/mask2former_mit_b2_ade20k.py 8
# No published result: ours, by Mask2Former's recipe, untested.
# The weights of MiT keep NVIDIA's non-commercial terms.
_base_ = [
    "_base_/models/mask2former_segmentation.py",
    "_base_/datasets/ade20k_mask2former.py",
    "_base_/optimizers/mask2former.py",
    "_base_/schedules/iterations_160k_power.py",
    "_base_/segmentation_runtime.py",
]

model = dict(backbone=dict(type="mm_vitbackbones.MiT", arch="b2"))
