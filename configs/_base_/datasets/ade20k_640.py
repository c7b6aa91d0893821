# ADE20K at 640 pixels: the pipelines of ade20k_segmentation.py with crops of 640x640, and all shorter sides in
# proportion. The longer side keeps its limit.
_base_ = "ade20k_segmentation.py"

crop_size = (640, 640)
scales = [(width, height * 640 // 512) for width, height in _base_.scales]


def enlarged(steps):
    """The steps of a pipeline, with their sizes at 640 for 512. ``scale`` is (longer side, shorter side)."""
    sizes = {"scale": lambda scale: (scale[0], scale[1] * 640 // 512), "crop_size": lambda _: crop_size}
    return [dict(step, **{key: sizes[key](step[key]) for key in sizes if key in step}) for step in steps]


train_pipeline = enlarged(_base_.train_pipeline)
test_pipeline = enlarged(_base_.test_pipeline)
tta_pipeline = [
    _base_.tta_pipeline[0],
    dict(type="TestTimeAug", transforms=[enlarged(steps) for steps in _base_.tta_transforms]),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
