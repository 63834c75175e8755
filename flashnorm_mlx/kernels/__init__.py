"""Fused kernels: each of a block's operations as one GPU launch."""
