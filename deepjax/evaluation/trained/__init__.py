"""Small trained networks that are part of the package, for notebooks and first steps."""
