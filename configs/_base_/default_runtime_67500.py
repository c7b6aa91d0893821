# As default_runtime_iterations.py, with a checkpoint at each evaluation of 67,500 iterations.
_base_ = "default_runtime_iterations.py"

default_hooks = dict(checkpoint=dict(interval=7500))
