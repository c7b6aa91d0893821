# As mask2former.py, from random weights: the backbone learns as fast as the rest.
_base_ = "mask2former.py"

optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            key: dict(rule, lr_mult=1.0) for key, rule in _base_.optim_wrapper.paramwise_cfg.custom_keys.items()
        },
    ),
)
