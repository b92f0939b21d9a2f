"""Hessian and Gauss-Newton matrix of the loss: products, trace, eigenvalues, density."""
