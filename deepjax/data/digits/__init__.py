"""The embedded data set: 1,797 handwritten digits; `builder.py` regenerates it."""
