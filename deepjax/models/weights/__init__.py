"""Weights in from and out to PyTorch."""
