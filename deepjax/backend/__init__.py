"""What XLA and a machine need to be told; imports nothing else of deepjax."""
