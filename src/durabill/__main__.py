"""The `durabill` command, also as `python -m durabill`.

Nothing is imported here but what a bare install has: whoever lacks an extra is told so.
"""

import sys

from durabill import __version__
from durabill.schemas.extras import missing_for


def main() -> None:
    """Run the command line; where a package of an extra is missing, say which extra to install."""
    try:
        from durabill.deploy.commands.cli import main as run

        run()
    except ImportError as error:
        missing = missing_for(sys.argv[1:], error.name)
        if missing is None:
            raise
        if sys.argv[1:] == ["--version"]:  # what a bare install can tell
            print(f"durabill {__version__}")
            return
        print(f"error: {missing}", file=sys.stderr)
        sys.exit(missing.exit_code)


if __name__ == "__main__":
    main()
