"""Residual networks as ensembles of paths."""
