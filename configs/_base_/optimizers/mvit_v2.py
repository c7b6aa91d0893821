# MViTv2's: a rate of 1.6e-4 for 64 images, a decay of 0.1, and none on norms and tables of distances.
_base_ = "adamw.py"

tables = {f".attn.{table}": dict(decay_mult=0.0) for table in ("rows", "columns")}
optim_wrapper = dict(
    optimizer=dict(lr=1.6e-4, weight_decay=0.1),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys=tables),
)
