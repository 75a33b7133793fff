"""Shared fixtures: a small tokenizer and tiny random models of every architecture family, made without a download."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once

import pytest
import torch

# Before anything imports Triton, which reads it once: kernels run in its interpreter where there is no GPU.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from helpers.tiny_models import build_model, build_tokenizer

pytest_plugins = ["helpers.long_files_first", "helpers.vllm_fixtures"]


def pytest_collection_finish() -> None:
    """Keep the libraries' millions of objects out of every collection: each training begins with a full one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _caches_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's converted model, but none of their reference caches."""
    from tdpo.models import cache_folder

    theirs, ours = cache_folder() / "models", tmp_path_factory.mktemp("tdpo-cache")
    theirs.mkdir(parents=True, exist_ok=True)
    (ours / "models").symlink_to(theirs, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TDPO_CACHE", str(ours))
        yield


@pytest.fixture(autouse=True)
def _float32_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on how fast the machine is: one that is about speed brings its own."""
    from tdpo.models import product_speed

    monkeypatch.setattr(product_speed, "measure", lambda dtype, device: product_speed.ProductSpeed(dtype, 100.0, 200.0))


@pytest.fixture(autouse=True)
def _offline_and_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models are fastest on one thread, and so are their neighbours on a shared machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture
def tiny_model() -> Callable[..., Any]:
    return build_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A saved tiny model with its tokenizer, as a user's local folder would be."""
    made: dict[str, Path] = {}

    def folder(family: str = "llama") -> Path:
        if family not in made:
            path = tmp_path_factory.mktemp(family)
            build_model(family).save_pretrained(path)
            build_tokenizer().save_pretrained(path)
            made[family] = path
        return made[family]

    return folder
