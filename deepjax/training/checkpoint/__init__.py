"""State on disk: saved asynchronously, verified, inspected."""
