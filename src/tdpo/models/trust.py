"""Code that a model's folder brings along runs only where the user said so; everywhere else it is refused in words.

transformers asks on the terminal where nobody told it whether to trust, and a pipe that says yes is enough then. So
every loader of the project says it, and what is refused is named as one thing, whoever refused it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class UntrustedCode(ValueError):
    """A model, tokenizer or embedder needs code from its own folder, which was not allowed to run."""

    def __init__(self, name: object) -> None:
        super().__init__(
            f"{name} brings Python code of its own, which may not run. Read it; where you trust it, set "
            "model.trust_remote_code=true in the recipe (in Python: trust_remote_code=True)"
        )


@contextmanager
def own_code_refused(name: object) -> Iterator[None]:
    """Turn what a library says of code that may not run into `UntrustedCode`."""
    try:
        yield
    except UntrustedCode:
        raise
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UntrustedCode(name) from error


def names_untrusted_code(load: Callable[P, R]) -> Callable[P, R]:
    """`load(name, …)`, which raises `UntrustedCode` where code of `name` may not run."""

    @functools.wraps(load)
    def loading(*args: P.args, **kwargs: P.kwargs) -> R:
        with own_code_refused(args[0] if args else kwargs.get("name")):
            return load(*args, **kwargs)

    return loading
