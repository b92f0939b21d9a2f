"""Signal propagation through depth: measured in a network, and predicted by mean field theory."""
