"""The `durabill` command: a file a command or a group; the longer ones have files of parts."""

from durabill.schemas.extras import require

require(__name__, "engine", "rich", "typer")
