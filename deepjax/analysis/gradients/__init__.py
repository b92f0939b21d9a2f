"""Gradients: per example, their noise, by loss, and their correlation."""
