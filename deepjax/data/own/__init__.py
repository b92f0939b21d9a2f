"""The user's own images, by a path: folders, lists, tar and Parquet files, arrays."""
