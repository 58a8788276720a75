"""`python -m chunkrl.cli` is `chunkrl`."""

from chunkrl.__main__ import main

if __name__ == "__main__":
    main()
