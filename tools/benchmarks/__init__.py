"""Time and memory of our backbones and other implementations: what ``tools/benchmark.py`` runs and reports."""
