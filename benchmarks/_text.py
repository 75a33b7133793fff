"""Tokens of real prose without a download: this repository's own pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/*.md", "recipes/*.yaml")


def token_stream(tokenizer: Any, least: int) -> list[int]:
    """At least `least` token ids, the pages repeated where they are too short."""
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in pages)
    ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return ids * -(-least // len(ids))
