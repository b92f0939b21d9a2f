"""The report of a training run: figures of its log and of its test images, as one HTML page."""
