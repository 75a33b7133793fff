"""The environment `sentiment`: short everyday requests. The more positive a response sounds, the higher its reward."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from tdpo.environments._built_in import packaged_prompts
from tdpo.environments.environment import Environment, theme_of
from tdpo.installation import extra_command


def sentiment_environment() -> Environment:
    """Return the environment: 234 requests of our own (128 to train, 106 held out), each for about one sentence.

    The first 40 held-out requests are of the 12 themes of the training requests, and the other 66, each for one short
    sentence, of 22 new ones. A theme, of three or four held-out requests, is a cluster (`cluster_of`).

    The reward is VADER's compound score of the response, from -1 (most negative) to 1 (most positive). Raises
    ModuleNotFoundError if VADER is not installed.
    """
    _require_vader()
    train, held_out = packaged_prompts("sentiment")
    return Environment(
        name="sentiment",
        train=train,
        held_out=held_out,
        reward=vader_compound,
        reward_name="VADER compound",
        max_new_tokens=32,
        description="short everyday requests; a more positive answer scores higher",
        threshold=0.5,  # plainly positive: VADER calls a text positive from 0.05 on
        cluster_of=theme_of,
    )


def vader_compound(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
    """Return VADER's compound score of each response, in [-1, 1]; 0 for a text without any word of its lexicon."""
    analyzer = _analyzer()
    return [analyzer.polarity_scores(response)["compound"] for response in completions]


@lru_cache(maxsize=1)
def _analyzer() -> Any:
    _require_vader()
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def _require_vader() -> None:
    if find_spec("vaderSentiment") is None:
        raise ModuleNotFoundError(
            "the environment 'sentiment' scores texts with the package vaderSentiment, which is not installed: "
            f"{extra_command('eval')}"
        )
