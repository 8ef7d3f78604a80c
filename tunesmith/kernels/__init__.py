"""Triton kernels for CUDA, each beside the torch code that says what it computes. Importing one needs triton."""
