"""Theoretical receptive fields of any computation, and effective ones by gradients."""
