"""The embedded data set: 1,797 real handwritten digits as a prepared tfds data set; `builder.py` makes it anew."""
