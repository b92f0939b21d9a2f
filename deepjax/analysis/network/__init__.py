"""How a network of any kind is called, and what its layers compute."""
