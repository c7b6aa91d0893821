# Of the linear probe of DINOv2: AdamW at 1e-3, a decay of 1e-4.
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-4))
