"""What ends an audit before it has an answer."""

from durabill.schemas.errors import DurabillError


class AuditError(DurabillError):
    """An audit can't be carried out, or not to its end; nothing is said about the totals."""

    exit_code = 2
