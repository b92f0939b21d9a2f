"""Which parts of an input a network's output depends on."""
