"""`deepjax evaluate` as a script; deepjax/cli/evaluate.py has the options and their meaning."""

import sys

from deepjax.cli.evaluate import start
from deepjax.command_line import run

if __name__ == "__main__":
    run(lambda: start(sys.argv[1:]))
