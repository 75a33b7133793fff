"""Python code in a model's folder runs only if the user allowed it; otherwise loading raises `UntrustedCode`.

Where the caller does not say whether to trust, transformers asks on the terminal, and a pipe that says yes is enough.
So every loader of the project says it, and a refusal has one class and one message, whichever library refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class UntrustedCode(ValueError):
    """A model, tokenizer or embedder needs code from its own folder, which may not run."""

    def __init__(self, name: object) -> None:
        super().__init__(
            f"{name} brings Python code of its own, which may not run. Read it; where you trust it, set "
            "model.trust_remote_code=true in the recipe (in Python: trust_remote_code=True)"
        )


@contextmanager
def own_code_refused(name: object) -> Iterator[None]:
    """A context in which a library's error about code that may not run becomes `UntrustedCode`."""
    try:
        yield
    except UntrustedCode:
        raise
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UntrustedCode(name) from error


def names_untrusted_code(load: Callable[P, R]) -> Callable[P, R]:
    """The function `load(name, …)`, made to raise `UntrustedCode` where `name` needs code that may not run."""

    @functools.wraps(load)
    def loading(*args: P.args, **kwargs: P.kwargs) -> R:
        with own_code_refused(args[0] if args else kwargs.get("name")):
            return load(*args, **kwargs)

    return loading
