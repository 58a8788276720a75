"""`python -m chunkrl.cli` is `chunkrl`."""

from chunkrl.cli import main

main()
