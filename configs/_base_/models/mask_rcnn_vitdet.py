# Mask R-CNN of ViTDet (Li et al. 2022): a ViT with windows and four global blocks, a simple pyramid of its last block,
# a fifth level by max pooling, two convolutions in the RPN, four and one linear layer in the box head, layer norms in
# both heads. Images are padded to squares of 1024 pixels, in tests too.
_base_ = "mask_rcnn.py"

norm_cfg = dict(type="mm_vitbackbones.LN2d", eps=1e-6)
model = dict(
    data_preprocessor=dict(pad_size_divisor=1024),
    backbone=dict(
        type="mm_vitbackbones.ViT",
        arch="base",
        window_size=14,
        relative_positions=64,
        pyramid="simple",
        init_cfg=dict(checkpoint="mae"),
    ),
    neck=dict(_delete_=True, type="mm_vitbackbones.MaxPoolLevel"),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type="Shared4Conv1FCBBoxHead", norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)
