# configs/mask_rcnn_swin_t_mini.py with mmdet's own Swin-Tiny in the backbone's place: what ours is compared with.
#   python tools/train.py tests/helpers/configs/mask_rcnn_mmdet_swin_t_mini.py --seed 0
_base_ = "../../../configs/mask_rcnn_swin_t_mini.py"

model = dict(backbone=dict(_delete_=True, type="SwinTransformer", drop_path_rate=0.0))
