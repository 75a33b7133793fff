"""training.compile by torch's backend "eager": what is traced is what is computed otherwise, whole and in few forms."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from helpers.tiny_models import build_model
from helpers.training_cases import lora, make_trainer, plain_rows, train_logs
from tdpo.training.compiling import RecompileWatch


@pytest.fixture
def fresh_compiler() -> None:
    torch._dynamo.reset()
    counters.clear()


# A form for the first width and one for all others; a reference that runs has its own two, without an adapter.
@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "graphs"), [(None, 2), (lora("q_proj"), 4)], ids=["all weights", "adapter"])
def test_three_updates_of_different_widths(
    adapter: Any, graphs: int, fresh_compiler: None, tokenizer: Any, tmp_path: Path
) -> None:
    losses = []
    for compiles in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        model: Any = build_model("llama")
        del model.model.layers[1:]  # a form costs a second for each layer
        trainer = make_trainer(
            model, tmp_path / str(len(losses)), tokenizer, plain_rows(6), peft_config=adapter, max_steps=3,
            per_device_train_batch_size=2, reference="model" if adapter else "cache", **compiles,
        )  # fmt: skip
        assert any(isinstance(watch, RecompileWatch) for watch in trainer.callback_handler.callbacks)
        trainer.train()
        losses.append([line["loss"] for line in train_logs(trainer)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6), "to the rounding of operations in another order"
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"] and not counters["unimplemented"]


def test_a_limit_of_forms_is_told_once(fresh_compiler: None, caplog: pytest.LogCaptureFixture) -> None:
    torch._dynamo.utils.counters["unimplemented"]["something else"] += 1
    watch = RecompileWatch()
    compiled = torch.compile(torch.nn.Linear(2, 2), backend="eager", dynamic=False)
    told = []
    with caplog.at_level(logging.WARNING, "tdpo"), torch._dynamo.config.patch(recompile_limit=2):
        for rows in (3, 4, 5, 6):
            compiled(torch.ones(rows, 2))
            watch.on_step_end(None, None, None)
            told.append(sum("compiled a function in 2 forms, its limit" in message for message in caplog.messages))
    assert told == [0, 0, 1, 1]
