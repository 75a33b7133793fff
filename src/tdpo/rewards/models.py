"""Reward models: sequence classifiers with one output, the reward of a prompt with its response."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..environments import Prompt
from ..models.adapter_bases import adapter_base
from ..models.classifiers import load_reward_classifier
from ..models.folder_files import is_adapter_folder
from ..models.model_loading import check_folder
from ..models.trust import own_code_refused

logger = logging.getLogger(__name__)

REWARD_BATCH = 16
# A model that was saved with its tokenizer has at least one of these files.
TOKENIZER_FILES = ("*token*", "*vocab*", "*.model", "merges.txt", "tekken.json")
# An embedding may have this many rows beyond its tokenizer's vocabulary, because libraries round its size up.
SPARE_ROWS = 1024
PROBES = ("The cat sat.", "What a wonderful day it was, said the cat, and sat down on the mat in the sun.")

Side = Literal["right", "left"]


class RewardModel:
    """A sequence-classification model with one output, as a reward function.

    Texts are encoded with the model's own tokenizer, and messages with its chat template. A model that was saved
    without a tokenizer reads the policy's tokens; both must then have the same vocabulary. Texts are scored in batches,
    padded such that each gets the same reward as alone. If no padding achieves that, they are scored one by one.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: weights are missing, the model has several outputs, its tokenizer has tokens that the model does not
            know, or it has code of its own that may not run.
    """

    def __init__(
        self, name: str | Path, policy_tokenizer: Any, *, device: Any = "cpu", trust_remote_code: bool = False
    ) -> None:
        self.name = str(name)
        own = _own_tokenizer(name, trust_remote_code)
        self.tokenizer = policy_tokenizer if own is None else own
        self.model = load_reward_classifier(name, trust_remote_code=trust_remote_code).to(device)
        self._check_vocabulary(is_own=own is not None)
        self.positions = _positions(self.model)
        self.padding_side = self._side_that_changes_nothing()

    @torch.no_grad()
    def __call__(self, prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
        """Return the model's output for each prompt with its response. Raises ValueError if one is too long."""
        encoded = [self._encode(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        for ids in encoded:
            if self.positions is not None and len(ids) > self.positions:
                raise ValueError(
                    f"prompt and response have {len(ids)} tokens for the reward model {self.name}, and it has room for "
                    f"{self.positions}; shorten the prompts, or the responses (max_new_tokens)"
                )
        return self._score(encoded, self.padding_side)

    def check(self, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
        """Check that the model can read every prompt and has room for a response of `max_new_tokens` tokens.

        Raises:
            ValueError: it cannot read a prompt or has too little room; the message names the prompt.
        """
        for prompt in prompts:
            try:
                length = len(self._encode(prompt.prompt, ""))
            except Exception as error:  # a template can raise any exception
                what = "its tokenizer has no chat template" if not self._has_template else str(error)
                raise ValueError(f"the reward model {self.name} cannot read prompt {prompt.id!r}: {what}") from error
            if self.positions is not None and length + max_new_tokens > self.positions:
                raise ValueError(
                    f"prompt {prompt.id!r} has {length} tokens for the reward model {self.name}; with "
                    f"max_new_tokens={max_new_tokens} it does not fit into its context of {self.positions} tokens: "
                    "shorten the prompt, lower max_new_tokens, or take a reward model with a longer context"
                )

    @property
    def _has_template(self) -> bool:
        return getattr(self.tokenizer, "chat_template", None) is not None

    def _check_vocabulary(self, *, is_own: bool) -> None:
        rows, largest = self.model.get_input_embeddings().weight.shape[0], max(self.tokenizer.get_vocab().values())
        whose = "its own" if is_own else "the policy's (it has none of its own)"
        if largest >= rows:
            raise ValueError(
                f"the reward model {self.name} knows {rows} tokens, but {whose} tokenizer has token {largest}: their "
                "vocabularies do not match. Save the reward model together with its own tokenizer."
            )
        if not is_own and rows - largest > SPARE_ROWS:
            raise ValueError(
                f"the reward model {self.name} knows {rows} tokens, and {whose} tokenizer has only {largest + 1}: "
                "their vocabularies do not match. Save the reward model together with its own tokenizer."
            )

    def _encode(self, prompt: Any, response: str) -> list[int]:
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt + response)["input_ids"])
        messages = [*prompt, {"role": "assistant", "content": response}]
        return list(self.tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"])

    # ---- batches ----

    def _score(self, encoded: list[list[int]], side: Side | None) -> list[float]:
        """Return the rewards of token sequences, in batches that are padded on `side`, or one by one if it is None."""
        size = REWARD_BATCH if side is not None else 1
        rewards: list[float] = []
        for start in range(0, len(encoded), size):
            batch = encoded[start : start + size]
            own_pad = self._pad_id
            pad = self._unused_id(batch) if own_pad is None else own_pad
            input_ids, mask = _padded(batch, pad, side)
            if own_pad is None and len(batch) > 1:
                self._pad_id = pad  # the model finds the end of a text by it
            try:
                output = self.model(
                    input_ids=input_ids.to(self.model.device), attention_mask=mask.to(self.model.device)
                )
            finally:
                self._pad_id = own_pad
            rewards += output.logits[:, 0].float().tolist()
        return rewards

    @property
    def _pad_id(self) -> int | None:
        """The padding token that the model was saved with and looks for. It may differ from its tokenizer's."""
        pad = self.model.config.get_text_config().pad_token_id
        rows = self.model.get_input_embeddings().weight.shape[0]
        return pad if pad is not None and 0 <= pad < rows else None

    @_pad_id.setter
    def _pad_id(self, pad: int | None) -> None:
        for config in (self.model.config, self.model.config.get_text_config()):
            config.pad_token_id = pad

    def _unused_id(self, batch: list[list[int]]) -> int:
        """Return a padding token for a model without one: the first candidate that occurs in none of these texts.

        The candidates are the tokenizer's padding token, its end-of-sequence token, and then all tokens. If a text
        ended with the padding token, the model would place the end of that text too early.
        """
        tokens_of_batch = {token for ids in batch for token in ids}
        rows = self.model.get_input_embeddings().weight.shape[0]
        candidates = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, *range(rows))
        return next(token for token in candidates if token is not None and token not in tokens_of_batch)

    @torch.no_grad()
    def _side_that_changes_nothing(self) -> Side | None:
        """Return the side on which padding does not change the rewards of texts of unequal length, or None.

        Two texts are scored alone and in one batch, padded on either side.
        """
        probes = self._probes()
        alone = torch.tensor(self._score(probes, None))
        precision = 1e-3 if next(self.model.parameters()).dtype == torch.float32 else 5e-2
        tolerance = precision * float(alone.abs().max())
        own: Side = "left" if self.tokenizer.padding_side == "left" else "right"
        other: Side = "right" if own == "left" else "left"
        for side in (own, other):
            try:
                together = torch.tensor(self._score(probes, side))
            except (RuntimeError, ValueError, IndexError):  # a model that takes no padding
                continue
            if float((together - alone).abs().max()) <= tolerance:
                return side
        logger.warning(
            "The reward model %s gives texts of unequal length other rewards in one batch than alone, however they are "
            "padded: it scores one text at a time, which is slower.",
            self.name,
        )
        return None

    def _probes(self) -> list[list[int]]:
        """Return two token sequences of unequal length that the model has room for."""
        short, long = (list(self.tokenizer(text)["input_ids"])[: self.positions] for text in PROBES)
        return [short if len(short) < len(long) else long[: max(1, len(long) // 2)], long]


def _padded(batch: list[list[int]], pad: int, side: Side | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids `[R, T]` and attention mask `[R, T]` of R rows with T positions."""
    longest = max(len(ids) for ids in batch)
    fill = [longest - len(ids) for ids in batch]
    if side == "left":
        ids = [[pad] * n + row for row, n in zip(batch, fill, strict=True)]
        mask = [[0] * n + [1] * (longest - n) for n in fill]
    else:
        ids = [row + [pad] * n for row, n in zip(batch, fill, strict=True)]
        mask = [[1] * (longest - n) + [0] * n for n in fill]
    return torch.tensor(ids), torch.tensor(mask)


def _own_tokenizer(name: str | Path, trust_remote_code: bool) -> Any | None:
    """Return the tokenizer that was saved with the model, or with the base model of an adapter; None without one."""
    from transformers import AutoTokenizer

    folder = check_folder(name)
    if Path(folder).is_dir() and not any(next(Path(folder).glob(files), None) for files in TOKENIZER_FILES):
        return _own_tokenizer(adapter_base(folder), trust_remote_code) if is_adapter_folder(folder) else None
    try:
        with own_code_refused(name):
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"the tokenizer of the reward model {name} cannot be read: {reason}") from error


def _positions(model: Any) -> int | None:
    """Return how many tokens the model has room for, or None if neither configuration nor embeddings limit them."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = [context] if isinstance(context, int) and context > 0 else []
    for name, module in model.named_modules():
        # RoBERTa counts its positions from the one after padding on.
        if isinstance(module, nn.Embedding) and module.padding_idx is not None and "position" in name:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    return min(limits, default=None)
