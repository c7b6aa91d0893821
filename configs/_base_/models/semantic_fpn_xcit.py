# Semantic FPN on the four levels of XCiT's own pyramid. Images are tested as they are.
_base_ = "semantic_fpn.py"

sync_bn = "torch"  # of the backbone, where a run is distributed
model = dict(
    data_preprocessor=dict(test_cfg=None),
    backbone=dict(type="mm_vitbackbones.XCiT", init_cfg=dict(checkpoint="imagenet1k_distilled_384")),
)
