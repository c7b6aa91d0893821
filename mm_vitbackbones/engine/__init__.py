"""Training and testing: what stands behind ``tools/train.py`` and ``tools/test.py``, over MMEngine's Runner."""
