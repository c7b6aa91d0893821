# As small.py, for a decode head of linear maps with norms.
_base_ = "small.py"

optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"_delete_": True, "backbone.": dict(lr_mult=0.3)}))
