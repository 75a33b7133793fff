"""Batches reach a GPU with the rows of a reference cache through pinned memory, in copies that nobody waits for.

On a CPU there is nothing to pin and nothing to copy: what torch would do for a GPU is noted in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import lora, make_trainer, plain_rows
from tdpo.batches import TokenizedPair, moved, padded_batch


class Copies:
    """What was pinned, as the pinned copies, and what of it went to which device in which way."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.pinned: list[Tensor] = []
        self.to_device: list[tuple[Tensor, str, bool]] = []
        self._to = Tensor.to
        patch.setattr(Tensor, "pin_memory", lambda tensor: self._pin(tensor))
        patch.setattr(Tensor, "to", lambda tensor, *args, **more: self._move(tensor, *args, **more))

    def _pin(self, tensor: Tensor) -> Tensor:
        self.pinned.append(tensor.clone())
        return self.pinned[-1]

    def _move(self, tensor: Tensor, *args: Any, **more: Any) -> Tensor:
        if not args or not isinstance(args[0], str | torch.device):
            return self._to(tensor, *args, **more)
        self.to_device.append((tensor, torch.device(args[0]).type, more.get("non_blocking", False)))
        return tensor


def all_tensors(batch: Mapping[str, Any]) -> Iterator[Tensor]:
    for value in batch.values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from all_tensors(value)


def is_among(tensor: Tensor, others: list[Tensor]) -> bool:
    return any(tensor is other for other in others)


@pytest.mark.parametrize("pins", [True, False])
def test_a_trainers_batches_are_pinned_with_the_rows_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pins: bool
) -> None:
    trainer = make_trainer(
        build_model("llama"), tmp_path, build_tokenizer(), plain_rows(2), peft_config=lora("q_proj"),
        reference="cache", use_cpu=False, dataloader_pin_memory=pins,
    )  # fmt: skip
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # which decides whether a loader pins
    copies = Copies(monkeypatch)
    batch = next(iter(trainer.get_train_dataloader()))
    rows = list(batch["reference"].values())
    assert len(rows) >= 4 and all(len(row) == len(batch["target_ids"]) for row in rows)
    sent = [tensor for tensor, _, waits_for_nobody in copies.to_device if waits_for_nobody]
    for tensor in all_tensors(batch):
        assert is_among(tensor, copies.pinned) == is_among(tensor, sent) == pins


def test_what_is_moved_by_hand_is_pinned_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of own responses and the rows of a rollout, which no data loader brings."""
    inputs = padded_batch([TokenizedPair.of([3], [4, 5], [6])], 0).as_inputs()
    inputs["reference"] = {"offset": torch.zeros(3), "hidden": torch.zeros(3, 2)}
    tensors = list(all_tensors(inputs))
    copies = Copies(monkeypatch)
    on_device = moved(inputs, "cuda:1")
    assert len(tensors) == len(copies.pinned) == len(copies.to_device)
    for tensor, device, waits_for_nobody in copies.to_device:
        assert device == "cuda" and waits_for_nobody and is_among(tensor, copies.pinned)
    assert on_device["known_counts"] is inputs["known_counts"] and on_device["num_prompts"] == 1
    moved(inputs, "cpu")
    assert len(copies.pinned) == len(tensors), "what stays on the host is not pinned"
