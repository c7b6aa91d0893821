# YOLOF with PVT-Small on COCO 2017, on the last level alone: 12 epochs, 8 GPUs with 8 images each.
#   tools/dist_train.sh configs/yolof_pvt_s_coco.py 8
# No published result: ours, by YOLOF's recipe with PVT's optimizer, untested.
_base_ = [
    "_base_/models/yolof.py",
    "_base_/datasets/coco_shifted.py",
    "_base_/optimizers/yolof.py",
    "_base_/schedules/epochs_12.py",
    "_base_/default_runtime.py",
]

model = dict(backbone=dict(arch="small"))
auto_scale_lr = dict(base_batch_size=64)
