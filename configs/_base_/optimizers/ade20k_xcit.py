# XCiT's: no decay on the layer norms of blocks. Batch norms do decay.
_base_ = "ade20k.py"

spared = {f".norm{i}.": dict(decay_mult=0.0) for i in (1, 2, 3)}
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True, custom_keys=spared))
