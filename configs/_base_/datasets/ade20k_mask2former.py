# ADE20K for Mask2Former: the shorter side of training images is one of 16 lengths, from half to twice the crop's. It is
# tested on images whose sides are not rounded.
_base_ = "ade20k_unaligned.py"

any_length = dict(
    type="RandomChoiceResize",
    scales=[512 * tenths // 10 for tenths in range(5, 21)],
    resize_type="ResizeShortestEdge",
    max_size=2048,
)
train_pipeline = [any_length if step["type"] == "RandomResize" else step for step in _base_.train_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
