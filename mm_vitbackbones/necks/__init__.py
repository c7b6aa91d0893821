"""Necks for MMDetection and MMSegmentation, imported when a config names them."""
