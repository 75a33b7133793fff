"""The entry point of the `tdpo` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. Where only the mathematics is installed, end with a message that says how to install it."""
    try:
        from .app import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "tdpo":
            raise
        from ..installation import extra_command

        sys.exit(f"tdpo: the command line needs {error.name}; install it with: {extra_command('train')}")
    from ._console import say_logs
    from ._errors import ends_with_the_reader

    say_logs()
    with ends_with_the_reader():
        app(prog_name="tdpo")


if __name__ == "__main__":
    main()
