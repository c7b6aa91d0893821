# As default_runtime.py, in iterations.
_base_ = "default_runtime.py"

default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=7375),
)
log_processor = dict(by_epoch=False)
