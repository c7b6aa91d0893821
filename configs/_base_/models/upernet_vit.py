# UPerNet on the four levels that a ViT-Base and its pyramid give.
_base_ = "upernet.py"

sync_bn = "torch"  # of the pyramid, where a run is distributed
model = dict(
    backbone=dict(type="mm_vitbackbones.ViT", arch="base", drop_path_rate=0.1),
    decode_head=dict(in_channels=[768] * 4),
    auxiliary_head=dict(in_channels=768),
)
