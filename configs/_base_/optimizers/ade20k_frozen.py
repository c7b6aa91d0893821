# Of a decoder alone, on a frozen network: AdamW at 1e-4.
_base_ = "ade20k.py"

optim_wrapper = dict(optimizer=dict(lr=1e-4))
