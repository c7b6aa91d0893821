# From pretrained weights on data of one's own: Swin's rules, with gradients clipped.
_base_ = "swin.py"

optim_wrapper = dict(clip_grad=dict(max_norm=10.0))
