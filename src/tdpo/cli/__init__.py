"""The `tdpo` command. Modules here import only typer and the standard library at the top: help stays fast."""
