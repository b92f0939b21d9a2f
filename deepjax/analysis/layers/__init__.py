"""Statistics by layer: activations and gradients, kernels, the first non-finite output."""
