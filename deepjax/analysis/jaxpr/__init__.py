"""Analysis of jaxprs: modules, multiply-adds, loops and primitives."""
