# PVT's Semantic FPN, by the authors' repository: twice PVTv2's rate, for twice its batch.
_base_ = "semantic_fpn.py"

optim_wrapper = dict(optimizer=dict(lr=2e-4))
