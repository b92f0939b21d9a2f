"""The neural tangent kernel, its change in training, and the linearised network."""
