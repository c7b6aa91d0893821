# SegFormer-B5 on ADE20K: 160,000 iterations, 8 GPUs with 2 images each, crops of 512x512.
#   tools/dist_train.sh configs/segformer_mit_b5_ade20k.py 8
# Published (SegFormer paper, not measured here): for crops of 640 only, see segformer_mit_b5_640_ade20k.py.
# The weights of MiT keep NVIDIA's non-commercial terms.
_base_ = [
    "_base_/models/segformer.py",
    "_base_/datasets/ade20k_segmentation.py",
    "_base_/schedules/adamw_poly_160k.py",
    "_base_/segmentation_runtime.py",
]

model = dict(
    backbone=dict(
        arch="b5",
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/segformer/mit_b5_20220624-658746d9.pth",
        ),
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512], channels=768),
)
# The head alone at ten times the rate: names that merely hold "head" are not meant.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"decode_head.": dict(lr_mult=10.0)}))
