# As default_runtime_iterations.py, the same for all segmentation configs.
_base_ = "default_runtime_iterations.py"

default_scope = "mmseg"
default_hooks = dict(checkpoint=dict(interval=4000, save_best="mIoU"))
visualizer = dict(type="SegLocalVisualizer")
