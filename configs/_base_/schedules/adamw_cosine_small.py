# Training from random weights in minutes, on the small embedded sets: AdamW at a falling cosine, 2 images a step.
# The neck and the head, which are convolutions with norms, learn several times faster than a transformer can.
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=12, val_interval=6)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    # fused: one pass over the parameters instead of a dozen, on CPU since torch 2.4.
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.98), weight_decay=0.05, fused=True),
    # MMEngine applies a custom key instead of the rules for norms and biases: the backbone's decay like its weights.
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys=dict(backbone=dict(lr_mult=0.2))),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type="CosineAnnealingLR", T_max=12, eta_min=1e-6, by_epoch=True, convert_to_iter_based=True),
]
auto_scale_lr = dict(enable=False, base_batch_size=2)
