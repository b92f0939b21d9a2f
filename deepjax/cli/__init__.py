"""The command line `deepjax NAME`: one file a command, each with `start(arguments)`."""
