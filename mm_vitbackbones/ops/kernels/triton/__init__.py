"""The Triton code of the kernels. It is imported at the first launch of each: Triton may not be installed."""
