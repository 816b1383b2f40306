"""The `durabill` command: one file a command."""
