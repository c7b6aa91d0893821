# SegFormer's: the head alone at ten times the rate. The dot keeps out names that merely hold "decode_head".
_base_ = "ade20k.py"

optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"decode_head.": dict(lr_mult=10.0)}))
