"""The user's own images, by a path: folders of classes and lists in CSV, read as they are."""
