"""The errors a user can cause. Each message names the place and the cure."""


class ChunkRLError(ValueError):
    """Bad input: the command line prints the message alone, without a traceback, and exits with 2."""


class DatasetError(ChunkRLError):
    """A data set that cannot be read as asked: names the file, the episode or the column."""


class CheckpointError(ChunkRLError):
    """A checkpoint that is incomplete or made for another configuration."""


class MissingExtraError(ChunkRLError):
    """A feature whose optional packages are not installed."""

    def __init__(self, feature: str, package: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs '{package}', which is not installed: pip install 'chunkrl[{extra}]'"
        )
