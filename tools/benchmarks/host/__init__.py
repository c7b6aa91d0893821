"""Processor time of a step, on a CPU that stands in for the host of a GPU."""
