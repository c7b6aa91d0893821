# Labels of the drawn scenes of `mini` (`python tools/prepare_data.py mini`), in ADE20K's layout. No benchmark.
_base_ = "own_segmentation.py"

data_root = "data/mini/"
classes = ("grass", "sand", "water", "paving", "ball", "beetle", "crate", "starfish", "ring")
metainfo = dict(
    classes=classes,
    palette=[
        (86, 130, 64),
        (214, 190, 130),
        (70, 130, 190),
        (150, 150, 150),
        (230, 60, 60),
        (120, 60, 20),
        (250, 160, 30),
        (150, 70, 200),
        (250, 240, 80),
    ],
)
num_classes = 9
crop_size = (160, 160)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),  # 0 is clutter without a label
    dict(type="RandomResize", scale=(224, 224), ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=[0.25, 0.25], direction=["horizontal", "vertical"]),  # seen from above
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(224, 224), keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
tta_pipeline = [
    _base_.tta_pipeline[0],
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=(side, side), keep_ratio=True) for side in (168, 224, 280)],
            _base_.tta_pipeline[1].transforms[1],  # with and without a flip
            [dict(type="LoadAnnotations", reduce_zero_label=True)],
            _base_.tta_pipeline[1].transforms[3],
        ],
    ),
]

train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        img_suffix=".png",
        seg_map_suffix=".png",
        metainfo=metainfo,
        reduce_zero_label=True,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        train_dataloader["dataset"],
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
