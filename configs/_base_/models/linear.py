# A batch norm and a linear map on the last grid of a frozen network (the probe of DINOv2 and DINOv3), tested on
# windows. An image is padded to whole patches before the network, and the padding is cut off its prediction.
_base_ = "encoder_decoder.py"

model = dict(
    data_preprocessor=dict(test_cfg=dict(size_divisor=16)),
    backbone=dict(pyramid=None, taps=[-1], frozen_stages="all", drop_path_rate=0.0),
    decode_head=dict(type="mm_vitbackbones.LinearHead", in_channels=[384]),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
