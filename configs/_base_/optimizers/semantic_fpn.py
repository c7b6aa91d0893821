# PVTv2's Semantic FPN: AdamW at a decay of 1e-4 on all parameters.
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4),
)
