"""What is wrong with a checkpoint."""


class CheckpointError(ValueError):
    """A file cannot be read as what it says it is; the message names the file and the tensor."""
