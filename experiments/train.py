"""Train one model on one data set: `deepjax train` as a script; see deepjax/cli/train.py."""

import sys

from deepjax.cli.train import start
from deepjax.command_line import run_command

if __name__ == "__main__":
    run_command(lambda: start(sys.argv[1:]))
