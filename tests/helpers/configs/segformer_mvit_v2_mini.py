# configs/segformer_mit_b0_mini.py with the small MViTv2 of retinanet_mvit_v2_mini.py, for half of its iterations.
#   python tools/train.py tests/helpers/configs/segformer_mvit_v2_mini.py --amp --seed 1
_base_ = "../../../configs/segformer_mit_b0_mini.py"

small = dict(depths=(1, 1, 2, 1), dims=(32, 64, 128, 256), num_heads=(1, 2, 4, 8))
model = dict(
    backbone=dict(type="mm_vitbackbones.MViTv2", arch={"_delete_": True, **small}),
    decode_head=dict(in_channels=[32, 64, 128, 256]),
)
train_cfg = dict(max_iters=1100, val_interval=1100)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], T_max=1100, end=1100)]
