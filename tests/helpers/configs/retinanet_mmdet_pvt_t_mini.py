# configs/retinanet_pvt_t_mini.py with mmdet's own PVT-Tiny in the backbone's place: what ours is compared with.
#   python tools/train.py tests/helpers/configs/retinanet_mmdet_pvt_t_mini.py --seed 0
_base_ = "../../../configs/retinanet_pvt_t_mini.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="PyramidVisionTransformer",
        num_layers=[2, 2, 2, 2],
        out_indices=(1, 2, 3),
        drop_path_rate=0.0,
    ),
)
