# configs/segformer_mit_b0_mini.py with XCiT-Nano with patches of 16 pixels, for half of its iterations.
#   python tools/train.py tests/helpers/configs/segformer_xcit_n_mini.py --amp --seed 1
_base_ = "../../../configs/segformer_mit_b0_mini.py"

model = dict(
    backbone=dict(type="mm_vitbackbones.XCiT", arch="nano_12_p16"),
    decode_head=dict(in_channels=[128] * 4),
)
train_cfg = dict(max_iters=1100, val_interval=1100)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], T_max=1100, end=1100)]
