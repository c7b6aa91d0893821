# COCO boxes for a detector on one coarse level (YOLOF): half of the images are shifted by up to a cell of the level,
# 8 images per GPU.
_base_ = "coco_detection.py"

shift = dict(type="RandomShift", prob=0.5, max_shift_px=32)
train_pipeline = [*_base_.train_pipeline[:-1], shift, _base_.train_pipeline[-1]]
train_dataloader = dict(batch_size=8, num_workers=8, dataset=dict(pipeline=train_pipeline))
