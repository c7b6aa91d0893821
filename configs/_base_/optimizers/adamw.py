# AdamW without clipping: PVT's and PVTv2's RetinaNet.
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-4))
