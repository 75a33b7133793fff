"""Liger's kernels in a body: what is replaced is what is called, in both models, and what they change is noticed.

Liger's norm does not run in Triton's interpreter, so without a GPU a stand-in has its place; `make test-gpu` has it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import MethodType, ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.devices import ON_THE_CPU
from helpers.training_cases import different_model, make_trainer, train_logs
from tdpo.models.liger import apply_liger, why_no_liger
from tdpo.training import policy

Norm = Callable[[Any, torch.Tensor], torch.Tensor]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A liger_kernel that replaces the norms of llama; `calls` counts, and `factor` spoils, what they give."""
    state: dict[str, Any] = {"calls": 0, "factor": 1.0, "asked": []}

    def norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        state["calls"] += 1
        return state["factor"] * type(self).forward(self, hidden)

    def whole(self: Any, *_: Any, **__: Any) -> None:
        raise AssertionError("the whole model's forward is not to be replaced")

    norm.__module__ = "liger_kernel.transformers.rms_norm"

    def apply(model: Any, **asked: Any) -> None:
        state["asked"].append(asked)
        if model.config.model_type != "llama":
            return
        model.forward = MethodType(whole, model)  # as an architecture's function that takes no names does
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = MethodType(norm, module)

    package, inner = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    package.__spec__ = __spec__  # it can be found
    inner._apply_liger_kernel_to_instance = apply  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", inner)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return state


def test_the_body_is_replaced_and_the_head_is_not(stand_in: dict[str, Any], tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("llama")
    assert apply_liger(model, {"rope": False}) == 5, "two norms a layer and the last one"
    assert "forward" not in model.__dict__ and stand_in["calls"] == 2 * 5, "of both forwards of the probe after it"
    assert stand_in["asked"] == [{"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}]


def test_what_has_no_kernels_or_other_numbers_is_refused(
    stand_in: dict[str, Any], tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"no kernels for the body of gpt_neox, so that it would have no effect"):
        apply_liger(tiny_model("gpt_neox"))
    stand_in["factor"] = 1.1
    with pytest.raises(ValueError, match=r"hidden states of llama differ by 0\.\d+ \(relative\)"):
        apply_liger(tiny_model("llama"))
    cpu = torch.device("cpu")
    assert "cross_entropy would have no effect" in str(why_no_liger({"cross_entropy": True}, cpu))
    assert why_no_liger(None, cpu) is None
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "this runs on the CPU" in str(why_no_liger(None, cpu)) and why_no_liger(None, torch.device("cuda")) is None
    with pytest.raises(ValueError, match="use_liger_kernel: Liger's kernels run on a GPU"):
        make_trainer(tiny_model("llama"), tmp_path, None, use_liger_kernel=True, **ON_THE_CPU)


def test_a_training_calls_them_in_both_models(
    stand_in: dict[str, Any], tiny_model: Callable[..., Any], tokenizer: Any, tmp_path: Path
) -> None:
    policy = tiny_model("llama")
    reference, logs = different_model(policy), []
    for uses in (False, True):
        trainer = make_trainer(
            tiny_model("llama"), tmp_path / str(uses), tokenizer, ref_model=different_model(policy),
            use_liger_kernel=uses,
        )  # fmt: skip
        before = stand_in["calls"]
        trainer.train()
        logs.append([line["loss"] for line in train_logs(trainer)])
        assert stand_in["calls"] - before == (2 * 2 * 5 if uses else 0), "two updates, two models, five norms"
        assert trainer.args.use_liger_kernel == uses and reference is not trainer.model
    assert logs[0] == logs[1]


def test_models_get_the_kernels_where_they_train(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference comes on the host, where no kernel runs; what is sharded stays there until the training begins."""
    places = []
    monkeypatch.setattr(policy, "apply_liger", lambda model, _: places.append(model.device.type) or 1)
    args: Any = SimpleNamespace(
        device=torch.device("meta"), place_model_on_device=True, fsdp="", deepspeed=None, liger_kernel_config=None
    )
    policy._use_liger(tiny_model("llama"), args)
    assert places == ["meta"]
    args.fsdp = "full_shard"
    with pytest.raises(ValueError, match=r"run on meta, and this model is on cpu .* sharded \(FSDP, DeepSpeed\)"):
        policy._use_liger(tiny_model("llama"), args)
