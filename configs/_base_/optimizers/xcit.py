# XCiT's detectors: a decay of 0.05, and none on the layer norms of blocks. Batch norms do decay.
_base_ = "adamw.py"

spared = {f".norm{i}.": dict(decay_mult=0.0) for i in (1, 2, 3)}
optim_wrapper = dict(optimizer=dict(weight_decay=0.05), paramwise_cfg=dict(custom_keys=spared))
