# SegFormer-B0 on ADE20K: 160,000 iterations, 8 GPUs with 2 images each, crops of 512x512.
#   tools/dist_train.sh configs/segformer_mit_b0_ade20k.py 8
# Published (SegFormer paper, not measured here): mIoU 37.4, with --tta 38.0.
# The weights of MiT keep NVIDIA's non-commercial terms.
_base_ = [
    "_base_/models/segformer.py",
    "_base_/datasets/ade20k_segmentation.py",
    "_base_/schedules/adamw_poly_160k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(
        arch="b0",
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segformer/mit_b0_20220624-7e0fe6dd.pth",
        ),
    ),
    decode_head=dict(in_channels=[32, 64, 160, 256], channels=256),
)
# The head alone at ten times the rate: names that merely hold "head" are not meant.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"decode_head.": dict(lr_mult=10.0)}))
