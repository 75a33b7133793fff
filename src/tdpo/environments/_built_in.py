"""The prompts that come with the package: one JSONL file an environment, in `prompts/`."""

from __future__ import annotations

import json
from pathlib import Path

from tdpo.environments.base import Prompt

_FOLDER = Path(__file__).parent / "prompts"


def packaged_prompts(name: str) -> tuple[list[Prompt], list[Prompt]]:
    """The prompts to train on and those held out, in the order of `prompts/<name>.jsonl`.

    A row holds `id`, `split` and `prompt` (text of the user's turn, or messages); what else it holds are columns.
    """
    splits: dict[str, list[Prompt]] = {"train": [], "held_out": []}
    for line in (_FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        key, split, prompt = (record.pop(field) for field in ("id", "split", "prompt"))
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        splits[split].append(Prompt(key, messages, record))
    return splits["train"], splits["held_out"]
