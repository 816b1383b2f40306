"""The `durabill` command: one file a command."""

from durabill.schemas.extras import require

require(__name__, "engine", "rich", "typer")
