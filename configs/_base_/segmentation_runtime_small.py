# As segmentation_runtime.py, for runs of minutes.
_base_ = "segmentation_runtime.py"

default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=1100))
log_processor = dict(window_size=20)
