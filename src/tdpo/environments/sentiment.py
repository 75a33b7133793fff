"""Short everyday requests; the more positive the answer sounds, the higher its reward."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tdpo.environments.base import Environment, Prompt

_PROMPTS = Path(__file__).parent / "prompts" / "sentiment.jsonl"


def sentiment_environment() -> Environment:
    """168 requests of our own (128 to train, 40 held out), each for about one sentence; reward: VADER's compound
    score of the response, from -1 (most negative) to 1 (most positive). Raises ModuleNotFoundError without VADER."""
    _require_vader()
    prompts: dict[str, list[Prompt]] = {"train": [], "held_out": []}
    for line in _PROMPTS.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        messages = [{"role": "user", "content": record["prompt"]}]
        prompts[record["split"]].append(Prompt(record["id"], messages))
    return Environment(
        name="sentiment",
        train=prompts["train"],
        held_out=prompts["held_out"],
        reward=vader_compound,
        reward_name="VADER compound",
        max_new_tokens=32,
        description="short everyday requests; a more positive answer scores higher",
    )


def vader_compound(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
    """VADER's compound score of each completion, in [-1, 1]; 0 for a text without any word that it knows."""
    analyzer = _analyzer()
    return [analyzer.polarity_scores(completion)["compound"] for completion in completions]


@lru_cache(maxsize=1)
def _analyzer() -> Any:
    _require_vader()
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def _require_vader() -> None:
    if find_spec("vaderSentiment") is None:
        raise ModuleNotFoundError(
            "the environment 'sentiment' scores texts with the package vaderSentiment, which is not installed: "
            "pip install 'tdpo[eval]'"
        )
