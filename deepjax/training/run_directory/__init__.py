"""The run directory: its files, its identity, its lock, and opening it for instruments."""
