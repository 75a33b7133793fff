"""The real server: started once, on this machine alone, by `make test-engines`. The ordinary suite skips its tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from helpers.vllm_server import RunningServer, Server


@pytest.fixture(scope="session")
def bundled() -> Path:
    """The bundled model as a folder that both sides load."""
    from tdpo.models import bundled_folder

    return Path(bundled_folder())


@pytest.fixture(scope="session")
def server(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    if running := os.environ.get("TDPO_VLLM_URL"):  # for work on these tests: a server that is up, and stays so
        yield RunningServer(running)
        return
    with started(bundled, tmp_path_factory.mktemp("vllm") / "server.log", 0) as one:
        yield one


@pytest.fixture(scope="session")
def start() -> Callable[..., AbstractContextManager[Server]]:
    """`started`, for tests that need a server of their own."""
    return started


@contextmanager
def started(model: Path, log: Path, number: int, *options: str) -> Iterator[Server]:
    """A server of this model; each of those that run at once has another `number`."""
    program = os.environ.get("TDPO_VLLM")
    if program is None:
        pytest.skip("TDPO_VLLM names no vllm program: `make test-engines`")
    port = int(os.environ.get("TDPO_VLLM_PORT", "8011")) + number
    one = Server(Path(program), model, port, log, *options)
    try:
        one.wait()
        yield one
    finally:
        one.stop()
