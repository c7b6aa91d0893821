# As default_runtime.py, for epochs of less than 100 iterations.
_base_ = "default_runtime.py"

default_hooks = dict(logger=dict(interval=20))
log_processor = dict(window_size=20)
