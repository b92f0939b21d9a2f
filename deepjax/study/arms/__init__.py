"""The networks of a study: declared, trained, and their results collected."""
