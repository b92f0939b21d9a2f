"""Reading a traced computation: its modules, products, loops and primitives."""
