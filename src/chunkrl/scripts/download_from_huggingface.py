"""`python -m chunkrl.scripts.download_from_huggingface` is `chunkrl download`."""

import sys

from chunkrl.cli import main

if __name__ == "__main__":
    main(["download", *sys.argv[1:]])
