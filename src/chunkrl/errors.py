"""The errors a user can cause. Each message names the place and the cure."""


class ChunkRLError(ValueError):
    """Bad input: the command line prints the message alone, without a traceback, and exits with 2."""


class DatasetError(ChunkRLError):
    """A data set that cannot be read as asked: names the file, the episode or the column."""


class LabelError(ChunkRLError):
    """Values that are as they should be, of which no labels can be made as asked: the values are kept."""


class CheckpointError(ChunkRLError):
    """A checkpoint that is incomplete or made for another configuration."""


class ObservationError(ChunkRLError):
    """What a policy is given to act on is not what it learned from: names the camera, the state or the task."""


class OutputFolderError(ChunkRLError):
    """A folder or file that holds what another run left, which is never written over."""


class TrainingStopped(KeyboardInterrupt):
    """Training that was asked to stop has stopped, with a checkpoint: what a Control-C is to who called it.

    update, num_updates: of all phases together, done and in all. checkpoint: its folder. cure: how it goes on.
    """

    def __init__(self, update: int, num_updates: int, checkpoint: str, cure: str) -> None:
        super().__init__(update, num_updates, checkpoint, cure)
        self.update, self.num_updates, self.checkpoint, self.cure = update, num_updates, checkpoint, cure

    def __str__(self) -> str:
        return (
            f"stopped after update {self.update} of {self.num_updates}; checkpoint: {self.checkpoint}\n"
            f"resume with: {self.cure}"
        )


class RecordError(ChunkRLError):
    """A record or message that came over the network and is malformed, or does not fit the others."""


class SpoolError(ChunkRLError):
    """A spool folder that cannot be used as asked: in use, full, read-only or damaged."""


class SpoolWriteError(SpoolError):
    """The disk takes nothing from a spool at the moment: full, read-only or failing. A later call may succeed."""


class TransportError(ChunkRLError):
    """Two ends that cannot or must not talk: names the address, what was refused and the cure."""
