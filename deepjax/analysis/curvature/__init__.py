"""The Hessian and the Gauss-Newton matrix: products, traces, eigenvalues."""
