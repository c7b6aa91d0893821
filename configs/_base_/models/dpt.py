# DPT (Ranftl et al. 2021): a convolutional decoder on the grids of four blocks and their class tokens. An image is
# padded to whole patches before the network, and the padding is cut off its prediction.
_base_ = "encoder_decoder.py"

model = dict(
    data_preprocessor=dict(test_cfg=dict(size_divisor=16)),
    backbone=dict(type="mm_vitbackbones.ViT", arch="base", pyramid=None, with_class_token=True, drop_path_rate=0.0),
    decode_head=dict(type="mm_vitbackbones.DPTHead", in_channels=[768] * 4, channels=256, readout="project"),
)
