"""Tokens of real prose without a download: this repository's own pages at the time when the command began."""

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
    """Let every process that is started within the context read one copy of the pages, even if the files change."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "pages.txt"
        copy.write_text(_pages(), encoding="utf-8")
        os.environ[SNAPSHOT] = str(copy)
        try:
            yield
        finally:
            del os.environ[SNAPSHOT]


def token_stream(tokenizer: Any, least: int) -> list[int]:
    """Return at least `least` token ids. The pages are repeated if they are too short."""
    ids: list[int] = tokenizer(_pages(), add_special_tokens=False).input_ids
    return ids * -(-least // len(ids))


def _pages() -> str:
    if copy := os.environ.get(SNAPSHOT):
        return Path(copy).read_text(encoding="utf-8")
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    return "\n".join(path.read_text(encoding="utf-8") for path in pages)
