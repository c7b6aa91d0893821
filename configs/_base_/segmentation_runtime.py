# As default_runtime.py, in iterations: the same for all segmentation configs.
_base_ = "default_runtime.py"

default_scope = "mmseg"
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=4000, save_best="mIoU"),
)
visualizer = dict(type="SegLocalVisualizer")
log_processor = dict(by_epoch=False)
