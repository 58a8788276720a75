"""`python -m chunkrl.scripts.check_dependencies` is `chunkrl doctor`."""

import sys

from chunkrl.cli import main

if __name__ == "__main__":
    main(["doctor", *sys.argv[1:]])
