"""The neural tangent kernel and linearised training."""
