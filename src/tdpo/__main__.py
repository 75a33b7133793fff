"""`python -m tdpo`, and so `accelerate launch -m tdpo`: the `tdpo` command."""

from .cli.main import main

if __name__ == "__main__":
    main()
