# Mask2Former with Swin-Small on COCO 2017, instances: 368,750 iterations, 8 GPUs with 2 images each.
#   tools/dist_train.sh configs/mask2former_swin_s_coco.py 8
# Published (MMDetection, not measured here): box AP 49.3, mask AP 46.1.
_base_ = [
    "_base_/models/mask2former.py",
    "_base_/datasets/coco_instance_jittered.py",
    "_base_/optimizers/mask2former_swin.py",
    "_base_/schedules/iterations_368750.py",
    "_base_/default_runtime_iterations.py",
]

model = dict(
    data_preprocessor=dict(batch_augments={{_base_.same_size}}),
    backbone=dict(type="mm_vitbackbones.Swin", arch="small", drop_path_rate=0.3),
    panoptic_head=dict(in_channels=[96, 192, 384, 768]),
)
