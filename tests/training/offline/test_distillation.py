"""Distillation: the KL to a larger model of one vocabulary is the loss, in three divergences, live and from a cache."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from helpers.tiny_models import build_model
from helpers.training_cases import lora, make_trainer, pair_numbers, plain_rows, train_logs, trained_weights
from tdpo.divergences import jensen_shannon


def teacher() -> Any:
    """Another architecture in width: 48 numbers a hidden state where the policy has 32, and a head of its own."""
    torch.manual_seed(5)
    config = hf.LlamaConfig(
        vocab_size=384, hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, pad_token_id=0, eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    model = hf.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return model.eval()


def distil(
    folder: Path, tokenizer: Any, kl: dict[str, Any], *, steps: int = 3, adapter: Any = None, **more: Any
) -> Any:
    return make_trainer(
        build_model("llama"), folder, tokenizer, ref_model=teacher(), loss="kl", kl=kl, max_steps=steps,
        peft_config=adapter, eval_rows=plain_rows(3, seed=4), **{"learning_rate": 1e-2, **more},
    )  # fmt: skip


def js_of(pair: Any, policy: Any, reference: Any) -> float:
    """The Jensen–Shannon divergence of weight 0.2 along the rejected response, from full logits."""
    ids = torch.tensor([pair.prompt_ids + pair.rejected_ids])
    with torch.no_grad():
        logits = [model(input_ids=ids).logits[0, len(pair.prompt_ids) - 1 : -1] for model in (policy, reference)]
    return float(jensen_shannon(*(z.double() for z in logits), weight=0.2).sum())


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        ({"on": "chosen"}, lambda chosen, rejected, js: chosen["forward_kl"]),
        ({"direction": "reverse"}, lambda chosen, rejected, js: 0.5 * (chosen["reverse_kl"] + rejected["reverse_kl"])),
        ({"direction": "js", "weight": 0.2, "on": "rejected"}, lambda chosen, rejected, js: js),
    ],
    ids=["forward", "reverse", "js"],
)
def test_the_loss_is_the_divergence_that_is_named(kl: Any, expected: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Beside explicit sums; its logged term is the loss itself, and the two KLs are what they are."""
    trainer = distil(tmp_path, tokenizer, kl)
    policy, reference, pairs = trainer.model, trainer.reference.model, trainer.eval_dataset
    numbers = pair_numbers(policy, reference, pairs)
    of_pairs = [expected(*both, js_of(pair, policy, reference)) for both, pair in zip(numbers, pairs, strict=True)]
    found = trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(sum(of_pairs) / 3, rel=1e-5) and sum(of_pairs) > 0.3
    assert found["eval_kl_term"] == found["eval_loss"] and found["eval_kl_coefficient"] == 1.0
    forward = sum(chosen["forward_kl"] for chosen, _ in numbers) / 3
    assert found["eval_chosen_forward_kl"] == pytest.approx(forward, rel=1e-5)


@pytest.mark.parametrize("kl", [{"direction": "js", "weight": 0.3}, {"direction": "reverse", "on": "chosen"}], ids=str)
def test_a_larger_teacher_works_from_a_cache_and_on_every_path(kl: Any, tokenizer: Any, tmp_path: Path) -> None:
    """One trajectory: live and cached, shared and padded rows, tiles and full logits, whole batches and parts."""
    adapter = lora("q_proj", "v_proj") if kl["direction"] == "js" else None
    runs = {
        "live": {"per_device_train_batch_size": 4},
        "cache": {"reference": "cache", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        "dense": {"head_impl": "dense", "prefix_sharing": "off"},
    }
    trainers = {}
    for name, more in runs.items():
        trainers[name] = distil(tmp_path / name, tokenizer, kl, adapter=adapter, optim="sgd", **more)
        trainers[name].train()
    assert "read from a cache" in trainers["cache"].describe() and "second model" in trainers["live"].describe()
    assert "Head: in tiles" in trainers["live"].describe()
    expected, logs = trained_weights(trainers["live"]), train_logs(trainers["live"])
    for name in ("cache", "dense"):
        for mine, theirs in zip(train_logs(trainers[name]), logs, strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4), name
        for key, weight in trained_weights(trainers[name]).items():
            torch.testing.assert_close(weight, expected[key], rtol=1e-4, atol=2e-6)


def test_the_policy_comes_nearer_to_its_teacher(tokenizer: Any, tmp_path: Path) -> None:
    trainer = distil(tmp_path, tokenizer, {"direction": "js"}, steps=12)
    trainer.train()
    terms = [line["kl_term"] for line in train_logs(trainer)]
    assert terms[-1] < 0.5 * terms[0]


def test_a_jensen_shannon_divergence_beside_a_frozen_head_takes_the_tiles(tokenizer: Any, tmp_path: Path) -> None:
    """An adapter's reference shares the frozen head, which gives no mixture: said in the log, refused if asked for."""

    def trainer(**more: Any) -> Any:
        return make_trainer(
            build_model("llama"),
            tmp_path,
            tokenizer,
            peft_config=lora("q_proj"),
            loss="dpo",
            kl={"direction": "js"},
            **more,
        )

    assert "(a Jensen–Shannon divergence needs both models at every entry of the vocabulary)" in trainer().describe()
    with pytest.raises(ValueError, match=r"head_impl='frozen' does not apply: a Jensen–Shannon .*Use 'auto'"):
        trainer(head_impl="frozen")


def test_a_teacher_of_other_tokens_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    """Of one size and yet another vocabulary; a few reserved entries by other names are no matter."""
    folder = tmp_path / "teacher"
    build_model("llama", seed=1).save_pretrained(folder)

    def trainer(swapped: int) -> Any:
        """Beside a teacher in whose vocabulary so many entries are swapped, two by two."""
        made = json.loads(tokenizer.backend_tokenizer.to_str())
        entries = list(made["model"]["vocab"].items())[50 : 50 + swapped]
        for (first, mine), (second, other) in zip(entries[::2], entries[1::2], strict=True):
            made["model"]["vocab"] |= {first: other, second: mine}
        changed = copy.deepcopy(tokenizer)
        changed._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(made))
        changed.save_pretrained(folder)
        return make_trainer(build_model("llama"), tmp_path / "run", tokenizer, loss="kl", ref_model=str(folder))

    assert trainer(2).reference is not None
    with pytest.raises(ValueError, match=r"has other tokens than the policy: 40 of 311 entries differ, as \d+ does"):
        trainer(40)


def test_a_teacher_is_needed_and_must_share_the_vocabulary(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="loss='kl' learns from a teacher: pass it as ref_model"):
        make_trainer(build_model("llama"), tmp_path, tokenizer, loss="kl")
    with pytest.raises(ValueError, match="the policy has 384 vocabulary entries and the reference 400"):
        make_trainer(
            build_model("llama"), tmp_path, tokenizer, loss="kl", ref_model=build_model("llama", vocab_size=400)
        )
