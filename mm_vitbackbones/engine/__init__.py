"""Training and testing with MMEngine's Runner: what ``tools/train.py`` and ``tools/test.py`` add to it."""
