"""How a signal travels through depth, measured and predicted."""
