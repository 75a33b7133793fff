"""The prompts that come with the package: one JSONL file per environment, in `prompts/`."""

from __future__ import annotations

import json
from pathlib import Path

from tdpo.environments.environment import Prompt

_FOLDER = Path(__file__).parent / "prompts"


def packaged_prompts(name: str) -> tuple[list[Prompt], list[Prompt]]:
    """Return the training prompts and the held-out prompts of `prompts/<name>.jsonl`, in the order of the file.

    A row has `id`, `split` and `prompt` (the text of the user's turn, or messages). Its other keys become columns.
    """
    splits: dict[str, list[Prompt]] = {"train": [], "held_out": []}
    for line in (_FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        key, split, prompt = (record.pop(field) for field in ("id", "split", "prompt"))
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        splits[split].append(Prompt(key, messages, record))
    return splits["train"], splits["held_out"]
