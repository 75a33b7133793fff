"""Tokens of real prose without a download: this repository's own pages, as they were when the command began."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/*.md", "recipes/*.yaml")
SNAPSHOT = "TDPO_BENCHMARK_TEXT"


@contextmanager
def frozen_pages() -> Iterator[None]:
    """For its length every process started from here reads one copy of the pages, whatever becomes of the files."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "pages.txt"
        copy.write_text(_pages(), encoding="utf-8")
        os.environ[SNAPSHOT] = str(copy)
        try:
            yield
        finally:
            del os.environ[SNAPSHOT]


def token_stream(tokenizer: Any, least: int) -> list[int]:
    """At least `least` token ids, the pages repeated where they are too short."""
    ids: list[int] = tokenizer(_pages(), add_special_tokens=False).input_ids
    return ids * -(-least // len(ids))


def _pages() -> str:
    if copy := os.environ.get(SNAPSHOT):
        return Path(copy).read_text(encoding="utf-8")
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    return "\n".join(path.read_text(encoding="utf-8") for path in pages)
