# 160,000 iterations without a warm-up, a polynomial of power 0.9 (Mask2Former on ADE20K).
_base_ = "iterations_160k.py"

param_scheduler = [dict(type="PolyLR", eta_min=0.0, power=0.9, by_epoch=False, begin=0, end=160000)]
