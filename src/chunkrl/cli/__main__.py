"""`python -m chunkrl.cli` is `chunkrl`."""

from chunkrl.__main__ import main

main()
