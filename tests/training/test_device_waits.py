"""An update waits for the device once: what it measures is read together, before its step.

On a GPU the waits are those that CUDA reports; elsewhere, the calls that would wait there (`helpers/device_waits.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from helpers.device_waits import Waits, counted_waits
from helpers.kernel_cases import needs_triton, quiet
from helpers.ppo_cases import PROMPTS, letters, make_online, make_ppo
from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import lora, make_trainer, plain_rows, train_logs, trained_weights
from tdpo.scoring.readings import Reading, read
from tdpo.token_statistics import implementations, learned_tokens
from tdpo.token_statistics.cuda import choice

AT_MOST = 1  # two are promised


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The head's kernels, which run on a GPU: the plain walk may wait more often."""
    monkeypatch.setattr(choice, "in_interpreter", not torch.cuda.is_available())
    monkeypatch.setattr(learned_tokens, "READ_FREELY", set())
    monkeypatch.setattr(implementations, "kernels_agree", lambda *_: True)
    yield


def steady(waits: Waits, first: int = 1) -> list[list[str]]:
    """The waits of each update, without the first ones: these compile, or collect responses."""
    assert len(waits.updates) > first
    return waits.updates[first:]


REVERSE = {"direction": "reverse", "on": "chosen", "target": 2.0}
CACHED = {"peft_config": lora("q_proj"), "reference": "cache", "kl": {"target": 2.0}, "log_names": "both"}
ON_PAIRS: dict[str, tuple[int, dict[str, Any]]] = {  # micro-batches, and what is trained
    "frozen head, cached": (1, CACHED),
    "frozen head, live, reverse KL": (2, {"peft_config": lora("q_proj"), "kl": REVERSE}),
    "trained head": (3, {}),
    "trained head, cached, reverse KL": (2, {"kl": REVERSE, "reference": "cache"}),
    "trained head, Jensen–Shannon": (2, {"kl": {"direction": "js"}}),
}


@needs_triton
@quiet
@pytest.mark.parametrize("case", ON_PAIRS)
@pytest.mark.slow
def test_an_update_on_pairs(kernels: None, tmp_path: Path, case: str) -> None:
    accumulation, changes = ON_PAIRS[case]
    with counted_waits() as waits:
        trainer = make_trainer(
            build_model("llama"), tmp_path, build_tokenizer(), plain_rows(2 * accumulation), callbacks=[waits],
            max_steps=2, per_device_train_batch_size=1, gradient_accumulation_steps=accumulation,
            use_cpu=not torch.cuda.is_available(), **changes,
        )  # fmt: skip
        trainer.train()
    assert [len(found) for found in steady(waits)] == [1], steady(waits)
    assert len(train_logs(trainer)) == 2, "each update was logged, its loss, norm and metrics"


DUAL = {"direction": "forward", "place": "loss", "form": "exact", "controller": "dual", "target": 1.0}
OF_PPO: dict[str, dict[str, Any]] = {
    "all weights, a held KL": {"kl": DUAL},
    "all weights, a held reverse KL and the entropy": {
        "kl": {**DUAL, "direction": "reverse"}, "entropy_coefficient": 0.01,
    },
    "an adapter, a limit of an iteration": {"peft_config": lora("q_proj"), "target_kl": 100.0},
}  # fmt: skip


@needs_triton
@quiet
@pytest.mark.parametrize("case", OF_PPO)
@pytest.mark.slow
def test_an_update_of_ppo(kernels: None, tmp_path: Path, case: str) -> None:
    with counted_waits() as waits:
        trainer = make_ppo(
            build_model("llama"), tmp_path, build_tokenizer(), letters, PROMPTS[:2], callbacks=[waits], iterations=1,
            completions=4, ppo_epochs=2, max_new_tokens=3, per_device_train_batch_size=2,
            gradient_accumulation_steps=2, **OF_PPO[case],
        )  # fmt: skip
        trainer.train()
    assert all(1 <= len(found) <= AT_MOST for found in steady(waits)), steady(waits)


@needs_triton
@quiet
@pytest.mark.parametrize("changes", [{"peft_config": lora("q_proj")}, {}], ids=["an adapter", "all weights"])
@pytest.mark.slow
def test_an_update_on_own_pairs(kernels: None, tmp_path: Path, changes: dict[str, Any]) -> None:
    with counted_waits() as waits:
        trainer = make_online(
            tmp_path, iterations=1, passes=2, completions=8, max_new_tokens=3, per_device_train_batch_size=2, **changes
        )
        trainer.add_callback(waits)
        trainer.train()
    assert all(1 <= len(found) <= AT_MOST for found in steady(waits)), steady(waits)


class Asks(TrainerCallback):
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        assert next(more["model"].parameters()).sum().item() is not None


def test_the_counter_notices_a_question(tmp_path: Path) -> None:
    found = []
    for callbacks in ([], [Asks()]):
        with counted_waits("tdpo/token_statistics/") as waits:
            make_trainer(
                build_model("llama"), tmp_path, build_tokenizer(), callbacks=[waits, *callbacks],
                use_cpu=not torch.cuda.is_available(),
            ).train()  # fmt: skip
        found.append(len(steady(waits)[0]))
    assert found[1] == found[0] + 1


QUESTIONS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool((x > 0).any()),
    "float": lambda x: float(x.sum()),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "cpu": lambda x: x.cpu(),
    "to cpu": lambda x: x.to("cpu"),
    "equal": lambda x: torch.equal(x, x + 1),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "unique": lambda x: x.unique(),
    "rows by a mask": lambda x: x[x > 0],
    "rows by a mask, set": lambda x: x.__setitem__(x > 0, torch.ones(2)),
    "masked_select": lambda x: x.masked_select(x > 0),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.tensor([1, 2, 1])),
    "a copy to the device": lambda x: torch.tensor([1.0], device=x.device),
    "another": lambda x: x.new_tensor([1.0], device=x.device),
}
NO_QUESTIONS: dict[str, Callable[[Tensor], Any]] = {
    "filled by a mask": lambda x: x.__setitem__(x > 0, 0.0),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "of a known size": lambda x: x.repeat_interleave(torch.tensor([1, 2, 1]), output_size=4),
    "rows by numbers": lambda x: x[torch.tensor([0, 2])],
    "to its device": lambda x: x.to(x.device),
    "another dtype": lambda x: x.to(torch.float64),
    "made there": lambda x: torch.zeros(3, device=x.device),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA itself reports the waits")
def test_the_counter_knows_the_questions() -> None:
    """Each once; and of what is on the host none, until it goes back in a copy that is waited for."""
    counts: Any = {}
    with counted_waits() as waits:
        for name, ask in (*QUESTIONS.items(), *((f"no {name}", ask) for name, ask in NO_QUESTIONS.items())):
            values = torch.tensor([1.0, -1.0, 2.0])
            waits.on_step_begin(None, None, None)
            ask(values)
            counts[name] = len(waits.updates[-1])
        values = torch.tensor([1.0, -1.0, 2.0])
        waits.on_step_begin(None, None, None)
        on_host = values.cpu() + 1
        assert on_host.tolist() == [2.0, 0.0, 3.0] and bool((on_host > 0).any()) and len(on_host.nonzero()) == 2
        on_host.to(values.device, non_blocking=True)
        assert len(waits.updates[-1]) == 1, waits.updates[-1]
        assert on_host.to(values.device).sum().item() == 5.0
        assert len(waits.updates[-1]) == 3, waits.updates[-1]
    assert counts == {**dict.fromkeys(QUESTIONS, 1), **dict.fromkeys((f"no {name}" for name in NO_QUESTIONS), 0)}


@pytest.mark.parametrize("accumulation", [1, 3])
def test_batches_that_are_laid_out_ahead_are_the_same(tmp_path: Path, accumulation: int) -> None:
    runs = []
    for ahead in (False, True):
        trainer = make_trainer(
            build_model("llama"), tmp_path / str(ahead), build_tokenizer(), plain_rows(11), max_steps=7, optim="sgd",
            per_device_train_batch_size=2, gradient_accumulation_steps=accumulation, eval_rows=plain_rows(3, seed=1),
            eval_strategy="steps", eval_steps=2,
        )  # fmt: skip
        trainer.looks_ahead = ahead
        trainer.train()
        runs.append(trainer)
    same = ("loss", "grad_norm", "margin", "epoch")
    plain, ahead = ([[line[name] for name in same] for line in train_logs(run)] for run in runs)
    assert plain == ahead
    assert all(torch.equal(w, trained_weights(runs[1])[name]) for name, w in trained_weights(runs[0]).items())


def test_readings_are_sums_and_maxima_in_the_order_in_which_they_came() -> None:
    parts = torch.randn(5, 3, dtype=torch.float64).abs()
    sums, largest = Reading(3), Reading(3, largest=True)
    for part in parts:
        sums.add(part)
        largest.add(part)
    others = read([sums, largest], torch.tensor(2.5), torch.tensor(3))
    expected = torch.zeros(3, dtype=torch.float64)
    for part in parts:
        expected = expected + part
    assert torch.equal(sums.values, expected) and torch.equal(largest.values, parts.amax(0))
    assert others.tolist() == [2.5, 3.0] and read([sums]).tolist() == []
    assert torch.equal(sums.values, expected), "a second reading takes nothing in twice"
