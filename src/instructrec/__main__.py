"""`python -m instructrec`."""

import os
import sys

# `python -m` looks for modules in the working folder first, which may be a model's from a stranger.
if sys.path[:1] in ([""], [os.getcwd()]):
    del sys.path[0]

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
