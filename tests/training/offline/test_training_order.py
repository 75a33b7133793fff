"""Batches of pairs of similar lengths: less padding, every pair once an epoch, on every process the same order."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler
from torch.utils.data import BatchSampler

from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import make_trainer, train_logs
from tdpo.batches import ResponseBatch, TokenizedPair
from tdpo.training import TDPOTrainer
from tdpo.training.offline.config import grouping_by_length
from tdpo.training.offline.order import LengthGroupedOrder


def ragged_pairs(count: int) -> list[TokenizedPair]:
    """Lengths as of chats: many short, a few ten times as long."""
    draw = random.Random(0)

    def ids(mean: float) -> list[int]:
        return [draw.randrange(5, 300) for _ in range(min(1 + int(draw.expovariate(1 / mean)), 150))]

    return [TokenizedPair.of(ids(12), [*ids(20), 1], [2, *ids(20), 1], row=i) for i in range(count)]


PAIRS = ragged_pairs(256)


def trainer_on(pairs: list[TokenizedPair], folder: Path, *, grouped: bool, **changes: Any) -> TDPOTrainer:
    order = grouping_by_length() if grouped else {}
    return make_trainer(build_model("llama"), folder, build_tokenizer(), pairs, **{"max_steps": 1, **order, **changes})


def epoch_of(trainer: TDPOTrainer, loader: Any = None) -> tuple[list[int], float]:
    """(rows of the pairs in the order of one epoch, share of computed tokens that are padding)."""
    seen: list[int] = []
    collate = trainer.data_collator

    def noting(pairs: Any) -> Any:
        seen.extend(pair.row for pair in pairs)
        return collate(pairs)

    trainer.data_collator = noting
    loader = trainer.get_train_dataloader() if loader is None else loader(trainer)
    batches = [ResponseBatch.from_inputs(inputs) for inputs in loader]
    trainer.data_collator = collate
    return seen, 1 - sum(b.num_tokens for b in batches) / sum(b.input_ids.numel() for b in batches)


LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": {"prefix_sharing": "off"},
    "shared": {},
    "packed": {"max_tokens_per_row": 256},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_grouping_saves_padding_and_sees_every_pair_once(layout: str, tmp_path: Path) -> None:
    random_order, random_padding = epoch_of(trainer_on(PAIRS, tmp_path, grouped=False, **LAYOUTS[layout]))
    order, padding = epoch_of(trainer_on(PAIRS, tmp_path, grouped=True, **LAYOUTS[layout]))
    print(f"{layout}: padding {random_padding:.1%} in random order, {padding:.1%} grouped")  # shown by pytest -s
    assert sorted(order) == sorted(random_order) == list(range(len(PAIRS)))
    assert order != random_order
    assert padding < random_padding * (0.9 if layout == "packed" else 0.6), "packed, little is left to save"
    assert layout != "packed" or random_padding < 0.05


def test_evaluation_is_grouped_too_and_says_the_same(tmp_path: Path) -> None:
    def evaluated(grouped: bool) -> tuple[list[int], float, dict[str, float]]:
        trainer = trainer_on(PAIRS[:4], tmp_path, grouped=grouped)
        trainer.eval_dataset = PAIRS[:127]  # type: ignore[assignment]
        seen, padding = epoch_of(trainer, TDPOTrainer.get_eval_dataloader)
        return seen, padding, trainer.evaluate()

    (order, padding, numbers), (plain_order, plain_padding, plain) = evaluated(True), evaluated(False)
    assert plain_order == list(range(127)) == sorted(order)
    assert padding < 0.6 * plain_padding
    for name in ("eval_loss", "eval_chosen_logp", "eval_policy_entropy"):
        assert numbers[name] == pytest.approx(plain[name], rel=1e-5)


def test_every_epoch_has_an_order_of_its_own_that_the_seed_decides() -> None:
    lengths = [len(pair.chosen_ids) for pair in PAIRS]

    def order(seed: int, epoch: int) -> list[int]:
        torch.rand(random.randrange(9))  # wherever the global random state is
        return list(LengthGroupedOrder(lengths, 8, seed, lambda: epoch))

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, 0)) for seed in (0, 7)} | {tuple(order(0, epoch)) for epoch in (1, 2)}) == 4


def test_training_draws_every_epoch_anew_and_misses_no_pair(tmp_path: Path) -> None:
    trainer = trainer_on(PAIRS[:20], tmp_path, grouped=True, max_steps=10)  # two epochs
    seen: list[int] = []
    collate = trainer.data_collator
    trainer.data_collator = lambda pairs: (seen.extend(pair.row for pair in pairs), collate(pairs))[1]  # type: ignore[func-returns-value]
    trainer.train()
    first, second = seen[:20], seen[20:]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert len(train_logs(trainer)) == 10


def test_processes_share_one_order_whatever_ran_in_them(tmp_path: Path) -> None:
    """Each has its own random state, and accelerate's wrappers, three deep after resumption, tell it no epoch."""
    trainers = [trainer_on(PAIRS, tmp_path, grouped=True) for _ in range(2)]
    shares: list[list[list[int]]] = []
    for rank, trainer in enumerate(trainers):
        trainer.state.epoch = 3.5  # as a checkpoint restores it
        torch.manual_seed(rank)
        batches = BatchSampler(trainer._get_train_sampler(), batch_size=4, drop_last=False)
        shard = BatchSamplerShard(batches, num_processes=2, process_index=rank)
        shares.append(list(shard))
        assert list(SkipBatchSampler(shard, 5)) == shares[rank][5:]
    assert sorted(i for share in shares for batch in share for i in batch) == list(range(len(PAIRS)))
    lengths = [[sum(trainers[0].collator.tokens(PAIRS[i]) for i in batch) for batch in share] for share in shares]
    uneven = sum(abs(a - b) for a, b in zip(*lengths, strict=True)) / sum(map(sum, lengths))
    assert uneven < 0.1, "processes have as much to do as each other"
