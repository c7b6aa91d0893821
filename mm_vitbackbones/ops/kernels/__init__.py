"""Kernels of our own for CUDA, in Triton, each next to its reference in PyTorch's operators.

One file for each kernel. ``registration.operator`` makes an operator of it, ``torch.ops.mm_vitbackbones.<name>``, which
runs the kernel on CUDA and the reference everywhere else, also where Triton is not installed. Gradients are not defined
here: the functions in ``ops/`` that call the operators define them. ``triton/`` holds the code of the kernels.
"""
