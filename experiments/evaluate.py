"""Test networks as their papers did: `deepjax evaluate` as a script; see deepjax/cli."""

import sys

from deepjax.cli.evaluate import start
from deepjax.command_line import run_command

if __name__ == "__main__":
    run_command(lambda: start(sys.argv[1:]), resumes=False)
