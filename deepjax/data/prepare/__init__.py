"""Preparing data sets as ArrayRecord: `python -m deepjax.data.prepare NAME`."""
