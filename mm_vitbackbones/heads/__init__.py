"""Heads and their parts. They are imported when a config names them, and decode heads need MMSegmentation."""
