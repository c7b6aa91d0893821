# UPerNet on the four levels of XCiT's own pyramid, from the weights that were distilled at 384 pixels.
_base_ = "upernet.py"

sync_bn = "torch"  # of the backbone, where a run is distributed
model = dict(backbone=dict(type="mm_vitbackbones.XCiT", init_cfg=dict(checkpoint="imagenet1k_distilled_384")))
