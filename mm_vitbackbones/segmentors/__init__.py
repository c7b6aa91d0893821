"""Segmentors. They need MMSegmentation, and are imported when a config names them."""
