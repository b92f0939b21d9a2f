"""Cost of a network: parameters, multiply-adds, memory and bytes moved, by layer and by stage."""
