"""Presets for ImageNet, each with its source."""
