"""What can be wrong with a checkpoint: damaged, of a kind that is not supported, or not fitting the model."""


class CheckpointFormatError(ValueError):
    """A file of a checkpoint is damaged, or is not what its name says; the message names the file and the fault."""


class UnsupportedError(ValueError):
    """A sound checkpoint asks for something that is not built here; the message names it and what would be accepted."""


class WeightsError(ValueError):
    """The weights of a checkpoint and those of the model do not match; the message names them."""
