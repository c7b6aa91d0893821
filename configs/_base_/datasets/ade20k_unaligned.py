# ADE20K as in ade20k_segmentation.py, tested on images whose sides are not rounded: as UPerNet's figures are.
_base_ = "ade20k_segmentation.py"

val_dataloader = dict(dataset=dict(pipeline={{_base_.unaligned_test_pipeline}}))
test_dataloader = val_dataloader
tta_pipeline = {{_base_.unaligned_tta_pipeline}}
