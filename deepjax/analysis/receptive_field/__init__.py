"""Theoretical and effective receptive fields."""
