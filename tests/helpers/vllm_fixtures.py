"""Fixtures of tests that sample from a server; a plugin of pytest, since tests of several rooms have them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from helpers.vllm_stand_in import VLLM


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that get no answer are repeated at once."""
    from tdpo.sampling.vllm import client

    monkeypatch.setattr(client, "PAUSE", 0.001)


@pytest.fixture
def vllm(impatient: None) -> Iterator[VLLM]:
    """A server with the tiny Llama."""
    from helpers.vllm_stand_in import running_vllm

    with running_vllm() as server:
        yield server
