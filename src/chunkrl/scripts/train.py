"""`python -m chunkrl.scripts.train` is `chunkrl train`."""

import sys

from chunkrl.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
