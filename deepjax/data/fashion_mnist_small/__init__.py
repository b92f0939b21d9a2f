"""An embedded data set: 20,000 images of Fashion-MNIST at half size; see `builder.py`."""
