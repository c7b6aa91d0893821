# Training from random weights in minutes, on the small embedded set: AdamW at a falling cosine, 4 crops a step.
# The decode head, which is linear maps with norms, learns several times faster than a transformer can.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=2200, val_interval=1100)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    # fused: one pass over the parameters instead of a dozen, on CPU since torch 2.4.
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.98), weight_decay=0.05, fused=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys={"backbone.": dict(lr_mult=0.3)}),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", T_max=2200, eta_min=1e-6, by_epoch=False, begin=0, end=2200),
]
auto_scale_lr = dict(enable=False, base_batch_size=4)
