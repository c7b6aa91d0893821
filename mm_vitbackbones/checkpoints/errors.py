"""What can go wrong with a checkpoint."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or used; the message says what it is and what to do."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint that asks for code to be run. Nothing of it has run."""


class CheckpointMismatch(CheckpointError):
    """A checkpoint whose parameters are not those of the network. The network is as it was."""


def shorten(names: "list[str] | tuple[str, ...]", most: int = 8) -> str:
    """The first ``most`` of the names, and how many more there are."""
    rest = f", ... ({len(names) - most} more)" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
