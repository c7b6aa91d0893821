"""Time and memory of our backbones beside other implementations: what ``tools/benchmark.py`` runs and reports."""
