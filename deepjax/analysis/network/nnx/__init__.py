"""NNX modules as networks."""
