# configs/segformer_mit_b0_mini.py with the CaiT of six blocks of retinanet_cait_mini.py, for half of its iterations.
#   python tools/train.py tests/helpers/configs/segformer_cait_mini.py --amp --seed 1
_base_ = "../../../configs/segformer_mit_b0_mini.py"

small = dict(dim=192, num_heads=4, depth=6)
model = dict(
    backbone=dict(type="mm_vitbackbones.CaiT", arch={"_delete_": True, **small}, pyramid="taps"),
    decode_head=dict(in_channels=[192] * 4),
)
train_cfg = dict(max_iters=1100, val_interval=1100)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], T_max=1100, end=1100)]
