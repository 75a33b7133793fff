"""The real server: started once, on this machine alone, by `make test-engines`. The ordinary suite skips its tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
    program = os.environ.get("TDPO_VLLM")
    if program is None:
        pytest.skip("TDPO_VLLM names no vllm program: `make test-engines`")
    port = int(os.environ.get("TDPO_VLLM_PORT", "8011"))
    started = Server(Path(program), bundled, port, tmp_path_factory.mktemp("vllm") / "server.log")
    try:
        started.wait()
        yield started
    finally:
        started.stop()
