# COCO boxes and masks for ViTDet: the crops of coco_instance_jittered.py, 8 images per GPU. In a test the longer side
# is 1024 pixels. The detector pads both to squares of 1024.
_base_ = "coco_instance_jittered.py"

test_pipeline = [
    dict(step, scale=_base_.crop_size) if step["type"] == "Resize" else step for step in _base_.test_pipeline
]

train_dataloader = dict(batch_size=8, num_workers=8)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
