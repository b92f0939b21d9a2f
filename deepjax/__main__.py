"""`python -m deepjax NAME ...`: the command `deepjax`."""

from deepjax.cli.__main__ import main

if __name__ == "__main__":
    main()
