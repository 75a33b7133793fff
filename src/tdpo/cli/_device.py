"""The line in which a command says where its models run."""

from __future__ import annotations

from ._console import say


def say_device(work: str, choice: str) -> None:
    """Say on which device this work is done, before models load. Raises ValueError where there is no such device."""
    from ..models.devices import describe_device, device_of

    say(f"{work} on {describe_device(device_of(choice))}")
