"""Preparing data sets as ArrayRecord: `deepjax data prepare NAME`."""
