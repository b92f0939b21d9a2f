"""The loss along lines, on planes, and along the path of training."""
