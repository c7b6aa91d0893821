# From random weights in minutes, on the small embedded sets. The neck and the head, which are convolutions with norms,
# learn several times faster than a transformer can.
optim_wrapper = dict(
    type="OptimWrapper",
    # fused: one pass over the parameters instead of a dozen, on CPU since torch 2.4.
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.98), weight_decay=0.05, fused=True),
    # MMEngine applies a custom key instead of the rules for norms and biases: the backbone's decay like its weights.
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys=dict(backbone=dict(lr_mult=0.2))),
    clip_grad=dict(max_norm=10.0),
)
