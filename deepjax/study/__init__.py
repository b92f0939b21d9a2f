"""Arms x seeds -> evidence -> verdict."""
