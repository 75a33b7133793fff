"""Training all weights of a bfloat16 model: float32 weights by default, one precision for policy and reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.ppo_cases import PROMPTS, letters, make_ppo, ppo_settings
from helpers.tiny_models import build_model, shake_adapter
from helpers.training_cases import lora, make_trainer, plain_rows, settings, train_logs
from tdpo.models import causal_lm_of, product_speed
from tdpo.models.product_speed import ProductSpeed
from tdpo.runs import ChangedInputs
from tdpo.training import TDPOTrainer

KLS = ("chosen_forward_kl", "rejected_forward_kl", "chosen_reverse_kl", "rejected_reverse_kl")


def half_model() -> Any:
    return build_model("llama", dtype=torch.bfloat16)


def changed_share(model: Any, before: dict[str, torch.Tensor]) -> float:
    weights = [(p.detach().float(), before[name].float()) for name, p in model.named_parameters()]
    return sum(int((now != then).sum()) for now, then in weights) / sum(now.numel() for now, _ in weights)


@pytest.fixture
def fast_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_speed, "measure", lambda dtype, device: ProductSpeed(dtype, 400.0, 100.0))


def test_all_weights_learn_by_default(tokenizer: Any, tmp_path: Path) -> None:
    """In bfloat16 nearly every step of this size is rounded away, which happens in silence."""
    shares = {}
    for choice in ("auto", "bfloat16"):
        model = half_model()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trainer = make_trainer(model, tmp_path / choice, tokenizer, learning_rate=5e-6, precision=choice)
        trainer.train()
        shares[choice] = changed_share(model, before)
        assert trainer.args.precision == choice
    # The rest are embeddings of tokens that no row has.
    assert shares["auto"] > 0.7 and shares["bfloat16"] < 0.05, shares
    assert "weights float32, products float32 (bfloat16 products are no gain here: 100 GFLOP/s" in (
        make_trainer(half_model(), tmp_path / "said", tokenizer).precision.describe()
    )


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose as for a training on a GPU, and train on what is there."""
    monkeypatch.setattr("tdpo.training.precision.device_of_training", lambda args: torch.device("cuda"))


@pytest.mark.parametrize("reference", ["model", "cache"])
def test_an_adapter_on_a_gpu_is_kept_in_float32_and_multiplied_in_bfloat16(
    reference: str, as_on_a_gpu: None, tokenizer: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(
        half_model(), tmp_path / "run", tokenizer, peft_config=lora(), reference=reference, learning_rate=5e-6
    )
    said = "Precision: weights bfloat16, adapters float32, all products bfloat16 (as the model was loaded)."
    assert trainer.precision.describe() == said and trainer.accelerator.mixed_precision == "bf16"
    adapters = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in adapters.values()} == {torch.float32}
    before = {name: p.detach().clone() for name, p in adapters.items()}
    seen: set[tuple[torch.dtype, torch.dtype]] = set()
    layer = causal_lm_of(trainer.model).model.layers[0].mlp.down_proj
    layer.lora_A["default"].register_forward_hook(lambda _, inputs, out: seen.add((inputs[0].dtype, out.dtype)))
    trainer.train()
    assert seen == {(torch.bfloat16, torch.bfloat16)}, "neither raised by peft nor multiplied in float32"
    first = train_logs(trainer)[0]
    assert [first[name] for name in KLS] == [0.0] * 4 and first["margin"] == 0.0
    firsts = [(p.detach(), before[name]) for name, p in adapters.items() if "lora_A" in name]
    moved, in_half = (
        sum(int((p.to(dtype) != start.to(dtype)).sum()) for p, start in firsts)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert moved > 0.9 * sum(p.numel() for p, _ in firsts) and in_half < 0.05 * moved, "16 bits would not have learned"


def test_what_peft_would_copy_is_left_out_and_nothing_else_changes() -> None:
    """Gradients are the same bits. Without autocast an adapter in float32 needs its input raised, and gets it."""
    from peft import get_peft_model

    from tdpo.models.adapters import leave_casts_to_autocast

    model = get_peft_model(half_model(), lora())
    shake_adapter(model, seed=1, std=0.1)
    ids = torch.arange(5, 23).view(2, 9)

    def computed(autocast: bool) -> tuple[list[torch.Tensor], int, int]:
        model.zero_grad()
        kept: dict[int, int] = {}
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
            torch.autograd.graph.saved_tensors_hooks(
                lambda t: (kept.__setitem__(t.untyped_storage().data_ptr(), t.nbytes), t)[1], lambda t: t
            ),
            Casts() as casts,
        ):
            loss = model(input_ids=ids).logits.float().square().mean()
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return [loss.detach(), *gradients], casts.numbers, sum(kept.values())

    before = {autocast: computed(autocast) for autocast in (False, True)}
    leave_casts_to_autocast(model)
    after = {autocast: computed(autocast) for autocast in (False, True)}
    for autocast, (values, *_) in before.items():
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(after[autocast][0], values, strict=True))
    assert after[False][1:] == before[False][1:]
    assert after[True][1] < 0.6 * before[True][1], "of numbers that change their dtype"
    assert after[True][2] < 0.97 * before[True][2], "of bytes that are kept for the backward pass"


class Casts(TorchDispatchMode):
    """Counts the numbers that are copied into another dtype."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default:
            self.numbers += args[0].numel()
        return func(*args, **(kwargs or {}))


def test_all_processes_choose_what_the_first_has_measured(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process has measured no gain (tests/conftest.py), and the first one has."""
    monkeypatch.setattr(
        "tdpo.training.precision.broadcast_object_list", lambda own: [ProductSpeed("bfloat16", 400.0, 100.0)]
    )
    trainer = make_trainer(half_model(), tmp_path, tokenizer)
    assert (trainer.precision.weights, trainer.precision.products) == ("float32", "bfloat16")


@pytest.mark.parametrize("reference", ["model", "cache", "second model"])
def test_mixed_products_start_with_a_kl_of_exactly_zero(
    reference: str, fast_bfloat16: None, tokenizer: Any, tmp_path: Path
) -> None:
    given = half_model() if reference == "second model" else None
    trainer = make_trainer(
        half_model(), tmp_path / "run", tokenizer, ref_model=given, max_steps=1,
        reference="cache" if reference == "cache" else "model",
    )  # fmt: skip
    products: list[torch.dtype] = []
    for model in filter(None, (trainer.model, trainer.statistics.reference_model)):
        causal_lm_of(model).model.layers[0].mlp.down_proj.register_forward_hook(
            lambda module, inputs, output: products.append(output.dtype)
        )
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    trainer.train()
    assert set(products) == {torch.bfloat16}
    [logged] = train_logs(trainer)
    assert [logged[name] for name in KLS] == [0.0] * 4 and logged["margin"] == 0.0
    assert "weights float32, products bfloat16 (bfloat16 products are clearly faster" in trainer.precision.describe()


def test_one_set_of_arguments_serves_trainers_of_different_precisions(
    fast_bfloat16: None, tokenizer: Any, tmp_path: Path
) -> None:
    """What follows from the model goes into a copy; and accelerate's state of the process does not stand in the way."""
    args = settings(tmp_path, max_steps=1, learning_rate=None)
    seen = []
    for model, adapter in ((half_model(), None), (build_model("llama"), None), (half_model(), lora())):
        trainer = TDPOTrainer(
            model, args=args, train_dataset=plain_rows(4), processing_class=tokenizer, peft_config=adapter
        )
        trainer.train()
        assert trainer.precision is not None
        seen.append((trainer.precision.dtypes(), trainer.accelerator.mixed_precision, trainer.args.learning_rate))
    assert seen == [
        ("weights float32, products bfloat16", "bf16", 5e-6),
        ("weights float32, products float32", "no", 5e-6),
        ("weights bfloat16, adapters float32, products bfloat16", "no", 1e-4),
    ]
    assert args.learning_rate is None and not args.bf16


def test_contradictions_are_refused(tmp_path: Path) -> None:
    for choice in ("float32", "bfloat16", "float16-mixed"):
        with pytest.raises(ValueError, match=rf"precision='{choice}' contradicts bf16=True .* bfloat16-mixed; leave"):
            settings(tmp_path, bf16=True, precision=choice)
        with pytest.raises(ValueError, match=rf"precision='{choice}' contradicts bf16=True"):
            ppo_settings(tmp_path, bf16=True, precision=choice)
    assert settings(tmp_path, bf16=True, precision="bfloat16-mixed").bf16
    with pytest.raises(ValueError, match=r"precision must be one of auto, float32, bfloat16-mixed.*got 'bf16'"):
        settings(tmp_path, precision="bf16")


def test_a_resumption_in_another_precision_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    def trainer(choice: str, steps: int) -> TDPOTrainer:
        how = {"save_strategy": "steps", "save_steps": 1, "max_steps": steps, "lr_scheduler_type": "constant"}
        return make_trainer(half_model(), tmp_path, tokenizer, precision=choice, **how)

    trainer("float32", 1).train()
    with pytest.raises(ChangedInputs, match="precision: was weights float32, products float32, is weights"):
        trainer("bfloat16-mixed", 2).train(resume_from_checkpoint=True)
    trainer("auto", 2).train(resume_from_checkpoint=True)


def test_ppo_and_its_critic_learn_in_float32_too(fast_bfloat16: None, tokenizer: Any, tmp_path: Path) -> None:
    critic = half_model()
    trainer = make_ppo(
        half_model(), tmp_path, tokenizer, letters, PROMPTS, value_model=critic, iterations=1, learning_rate=None,
        ppo_epochs=1,
    )  # fmt: skip
    assert trainer.args.learning_rate == 1e-6 and trainer.precision.products == "bfloat16"
    trainer.train()
    assert {p.dtype for model in (trainer.model, critic) for p in model.parameters()} == {torch.float32}
    [first] = [line for line in trainer.state.log_history if "penalized_reward_mean" in line]
    assert first["forward_kl"] == 0.0 and first["reverse_kl"] == 0.0
    adapted = make_ppo(
        half_model(), tmp_path, tokenizer, letters, PROMPTS, value_model=half_model(), peft_config=lora()
    )
    assert adapted.precision.weights == "bfloat16"
    assert {p.dtype for p in adapted.critic.parameters()} == {torch.float32}, "all of its weights are trained"
