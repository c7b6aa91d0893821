# PVT's AdamW with YOLOF's rules: the backbone at a third of the rate, no decay on norms of the rest. Four times
# RetinaNet's batch, and twice its rate.
_base_ = "adamw.py"

optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={"backbone.": dict(lr_mult=1 / 3)}),
)
