# As own.py, with the decode head at ten times the rate, as SegFormer has it.
_base_ = "own.py"

optim_wrapper = dict(
    optimizer=dict(weight_decay=0.01),
    paramwise_cfg=dict(custom_keys={"decode_head.": dict(lr_mult=10.0)}),
)
