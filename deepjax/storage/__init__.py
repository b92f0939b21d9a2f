"""Object storage: run directories and prepared data in buckets, by fsspec."""
