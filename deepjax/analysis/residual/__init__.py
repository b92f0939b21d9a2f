"""Residual networks as ensembles of paths: ablation of branches, and gradients along paths."""
