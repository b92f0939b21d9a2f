"""Gradients: per example, their noise scale, by loss, and how alike they are across inputs."""
