"""What can be wrong with the sealed log, its keys and its receipts; see `schemas.errors`."""

from durabill.schemas.errors import DurabillError


class SealError(DurabillError):
    """The sealed log can't be kept, or read; the message says what to do."""


class SealBusy(SealError):
    """Another sealer works in the folder."""


class KeyFileError(SealError):
    """A key file can't be used; the message says why."""

    exit_code = 2


class NotVerified(SealError):
    """A receipt or a checkpoint can be read, and doesn't prove what it says."""


class Unreadable(SealError):
    """A file is no receipt, or no checkpoint: nothing can be said of it."""

    exit_code = 2
