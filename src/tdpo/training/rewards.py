"""What a completion is worth: reward functions and reward models, weighted, called once and checked every time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..environments import Environment, Prompt, RewardError, RewardFunction, check_prompt_rows, score
from ..environments.files import refuse_reserved_columns
from ..models import check_folder
from ..preferences.readers import read_dataset
from ..preferences.text_files import Record

REWARD_BATCH = 16
FLAT_ITERATIONS = 3


@dataclass(frozen=True)
class Reward:
    """One source of reward. `function` has the signature of TRL's GRPO: (prompts, completions, **columns) → floats."""

    name: str
    function: RewardFunction
    weight: float = 1.0

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Unweighted, one number a completion. Raises RewardError naming prompt and value."""
        environment = Environment(self.name, [], [], self.function, self.name, 1, "")
        return score(environment, prompts, completions)


@dataclass(frozen=True)
class Rewards:
    """The weighted sum of several rewards."""

    parts: list[Reward]

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> tuple[list[float], dict[str, float]]:
        """The reward of every completion, and the mean of each part where there are several.

        Raises:
            RewardError: a function raised, or gave something that is not one finite number a completion.
        """
        columns = [part(prompts, completions) for part in self.parts]
        totals = [sum(p.weight * v for p, v in zip(self.parts, row, strict=True)) for row in zip(*columns, strict=True)]
        several = zip(self.parts, columns, strict=True) if len(self.parts) > 1 else ()
        return totals, {f"rewards/{part.name}": sum(column) / max(len(column), 1) for part, column in several}


@dataclass
class ConstancyWatch:
    """Tells a reward function that says the same of everything from an iteration without a difference.

    A hard task gives no reward at first, a learned one the same to all: that costs an iteration and is said. A reward
    that has never differed in the first `FLAT_ITERATIONS` teaches nothing and is an error.
    """

    flat: int = 0
    varied: bool = False

    def see(self, rewards: Sequence[float], prompts: Sequence[Prompt], completions: Sequence[str]) -> str | None:
        """What to say of this iteration's rewards, if anything.

        Raises:
            RewardError: different completions got one and the same reward, in the first `FLAT_ITERATIONS` of a run.
        """
        self.varied = self.varied or len(set(rewards)) > 1
        if len(set(rewards)) > 1 or len(set(completions)) == 1:
            return None
        self.flat += 1
        what = (
            f"the reward gave {rewards[0]!r} to all {len(rewards)} completions of an iteration, different ones among "
            f"them (the first answers prompt {prompts[0].id!r})"
        )
        if self.varied or self.flat < FLAT_ITERATIONS:
            return f"{what}: it teaches nothing but the KL. More completions an iteration make that rarer."
        raise RewardError(
            f"{what}, and so in each of the first {self.flat}: a constant reward teaches nothing. Is it the right "
            "function for these prompts, or is every completion at its limit already?"
        )


def rewards_of(given: Any, weights: Sequence[float] | None, tokenizer: Any, *, device: Any = "cpu") -> Rewards:
    """Rewards from what a user passes: a function, the name of a sequence-classification model, or a list of these.

    Raises:
        ValueError: nothing was given, the weights do not match, or a reward model that does not fit (`RewardModel`).
    """
    if isinstance(given, Rewards):
        return given
    sources = list(given) if isinstance(given, list | tuple) else [given]
    if not sources or any(source is None for source in sources):
        raise ValueError("reward_funcs is missing: pass a function (prompts, completions, **columns) -> list[float]")
    if weights is not None and len(weights) != len(sources):
        raise ValueError(f"reward_weights has {len(weights)} numbers for {len(sources)} reward functions")
    parts = []
    for source, weight in zip(sources, weights or [1.0] * len(sources), strict=True):
        if isinstance(source, str | Path):
            model = RewardModel(source, tokenizer, device=device)
            parts.append(Reward(Path(source).name, model, weight))
        elif callable(source):
            parts.append(Reward(getattr(source, "__name__", type(source).__name__), source, weight))
        else:
            raise ValueError(f"a reward is a function or the name of a model, got {type(source).__name__}")
    names = [part.name for part in parts]
    if len(set(names)) < len(names):
        parts = [Reward(f"{part.name} ({i})", part.function, part.weight) for i, part in enumerate(parts, start=1)]
    return Rewards(parts)


class RewardModel:
    """A sequence-classification model with one output, as a reward function.

    Texts go through the model's own tokenizer, messages through its chat template. A model saved without a tokenizer
    reads the policy's tokens, and then both must have one vocabulary.

    Raises:
        ValueError: several outputs, or a tokenizer with tokens that the model does not know.
    """

    def __init__(self, name: str | Path, policy_tokenizer: Any, *, device: Any = "cpu") -> None:
        from transformers import AutoModelForSequenceClassification

        folder = check_folder(name)
        self.name = str(name)
        self.tokenizer = self._own_tokenizer(folder) or policy_tokenizer
        loader: Any = AutoModelForSequenceClassification
        self.model = loader.from_pretrained(folder, use_safetensors=True).eval().requires_grad_(False).to(device)
        outputs = self.model.config.num_labels
        if outputs != 1:
            raise ValueError(f"the reward model {name} has {outputs} outputs; a reward is one number (num_labels=1)")
        known, largest = self.model.get_input_embeddings().weight.shape[0], max(self.tokenizer.get_vocab().values())
        if largest >= known:
            whose = "its own" if self.tokenizer is not policy_tokenizer else "the policy's (it has none of its own)"
            raise ValueError(
                f"the reward model {name} knows {known} tokens, but {whose} tokenizer has token {largest}: their "
                "vocabularies do not match. Save the reward model together with its own tokenizer."
            )
        if self.model.config.pad_token_id is None:
            self.model.config.pad_token_id = self.tokenizer.pad_token_id

    @staticmethod
    def _own_tokenizer(folder: Any) -> Any | None:
        from transformers import AutoTokenizer

        if Path(folder).is_dir() and not any(Path(folder).glob("*token*")):
            return None
        return AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def __call__(self, prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
        """The model's output for each prompt with its completion."""
        found: list[float] = []
        encoded = [self._encode(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        for start in range(0, len(encoded), REWARD_BATCH):
            batch = self.tokenizer.pad({"input_ids": encoded[start : start + REWARD_BATCH]}, return_tensors="pt")
            inputs = {name: value.to(self.model.device) for name, value in batch.items()}
            found += self.model(**inputs).logits[:, 0].float().tolist()
        return found

    def _encode(self, prompt: Any, completion: str) -> list[int]:
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt + completion)["input_ids"])
        messages = [*prompt, {"role": "assistant", "content": completion}]
        return list(self.tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"])


def prompts_of(dataset: Any, name: str) -> list[Prompt]:
    """Prompts from what a user passes: `Prompt`s, texts, lists of messages, or rows with `prompt` and other columns.

    Rows are numbered from 0, and checked as those of files are.

    Raises:
        ValueError: no rows, or a row without a prompt, named by its number; UnreadablePreferences and BadPreferences
            as `load_prompts`.
    """
    rows = [record.values for record in read_dataset(dataset, name) if isinstance(record, Record)]
    if not rows:
        raise ValueError(f"{name} has no prompts")
    refuse_reserved_columns([row.columns for row in rows if isinstance(row, Prompt)], name)
    numbered = [(i, _row(row, f"{name}:{i}")) for i, row in enumerate(rows) if not isinstance(row, Prompt)]
    checked = iter(check_prompt_rows(numbered, name))
    return [row if isinstance(row, Prompt) else next(checked) for row in rows]


def digest_of(prompts: Sequence[Prompt]) -> str:
    """A hash of the prompts in their order, with the columns that reach the reward functions."""
    content = [[prompt.prompt, dict(prompt.columns)] for prompt in prompts]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _row(row: Any, place: str) -> Mapping[str, Any]:
    values = row if isinstance(row, Mapping) else {"prompt": row}
    text = values.get("prompt")
    if not text or not isinstance(text, str | list):
        raise ValueError(f"{place} must hold a `prompt`, a text or a list of messages that is not empty, got {text!r}")
    return values
