"""Training that starts from weights: what is loaded, and batch norms that are frozen."""
