"""Where the reference's part of a step comes from: chosen, said, shared between runs, and the same in any case."""

from __future__ import annotations

import logging
import math
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.tiny_models import build_model
from helpers.training_cases import (
    METRICS,
    different_model,
    lora,
    make_trainer,
    plain_rows,
    settings,
    train_logs,
    trained_weights,
)
from tdpo.reference_cache import building
from tdpo.scoring.reference_source import CachedReference
from tdpo.scoring.row_forms import costs_of
from tdpo.training import TDPOConfig
from tdpo.training.offline import reference_caching as source


def cached_trainer(folder: Path, tokenizer: Any, *, family: str = "llama", adapter: bool = True, **changes: Any) -> Any:
    given = {"reference": "cache", "max_steps": 4, **changes}
    return make_trainer(build_model(family), folder, tokenizer, peft_config=lora() if adapter else None, **given)


def is_cached(trainer: Any) -> bool:
    return isinstance(trainer.statistics.source, CachedReference)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pairs' tokens that the reference computed, one entry a forward."""
    seen: list[int] = []
    hidden_and_head = source.Reference.hidden_and_head

    def counted(self: Any, policy: Any, inputs: Any, index: Any) -> Any:
        seen.append(len(index))
        return hidden_and_head(self, policy, inputs, index)

    monkeypatch.setattr(source.Reference, "hidden_and_head", counted)
    return seen


@pytest.mark.parametrize(("family", "adapter", "path"), [
    ("llama", True, "frozen"), ("llama", False, "tiled"), ("gemma2", True, "tiled"), ("gpt_neox", True, "frozen"),
    ("qwen2", False, "tiled"),
])  # fmt: skip
def test_cache_and_model_train_alike(family: str, adapter: bool, path: str, tokenizer: Any, tmp_path: Path) -> None:
    runs = []
    for reference in ("model", "cache"):
        trainer = cached_trainer(
            tmp_path / reference, tokenizer, family=family, adapter=adapter, reference=reference,
            eval_rows=plain_rows(5, seed=2), optim="sgd", learning_rate=3e-2,
        )  # fmt: skip
        assert trainer.statistics.path.name == path
        trainer.train()
        runs.append((trainer, trainer.evaluate()))
    (live, live_numbers), (cached, cached_numbers) = runs
    assert is_cached(cached) and not is_cached(live)
    for mine, theirs in zip(train_logs(cached), train_logs(live), strict=True):
        for name in (*METRICS, "grad_norm"):
            assert mine[name] == pytest.approx(theirs[name], rel=2e-4, abs=2e-5), name
    assert train_logs(cached)[0]["accuracy"] == 0.5, "margins that are 0 up to rounding are ties"
    assert train_logs(live)[-1]["chosen_forward_kl"] > 1e-3
    for name in METRICS:
        assert cached_numbers[f"eval_{name}"] == pytest.approx(live_numbers[f"eval_{name}"], rel=2e-4, abs=2e-5)
    weights = trained_weights(live)
    for name, weight in trained_weights(cached).items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapter", [True, False])
def test_a_sweep_pays_once(adapter: bool, tokenizer: Any, tmp_path: Path, forwards: list[int]) -> None:
    said: list[str] = []
    for number, beta in enumerate((0.05, 0.1, 0.5)):
        trainer = cached_trainer(
            tmp_path / str(number), tokenizer, adapter=adapter, beta=beta, reference_cache_dir=str(tmp_path / "shared")
        )
        trainer.train()
        said.append(trainer.describe())
        if number == 0:
            once = len(forwards)
    # Each trainer looks at one pair, to learn what it would keep.
    assert once > 1 and len(forwards) == once + 2
    assert len(list((tmp_path / "shared").glob("*/cache.json"))) == 1
    assert all("Reference: read from a cache" in sentence for sentence in said)


def test_without_an_adapter_no_second_model_is_kept(tokenizer: Any, tmp_path: Path) -> None:
    trainer = cached_trainer(tmp_path, tokenizer, adapter=False)
    assert trainer.reference is None
    kept = trainer.statistics.source.head
    assert kept is not None and not kept.weight.requires_grad
    before = kept.weight.clone()
    trainer.train()
    assert torch.equal(kept.weight, before), "the reference's head stays what it was"
    assert not torch.equal(trainer.model.lm_head.weight, before)
    with pytest.raises(ValueError, match=r"Pass these pairs as eval_dataset .*reference='model'"):
        trainer.evaluate(plain_rows(3, seed=9))


def test_an_adapters_reference_answers_for_pairs_that_no_cache_knows(tokenizer: Any, tmp_path: Path) -> None:
    new = plain_rows(3, seed=9)
    trainer, live = (
        cached_trainer(tmp_path / kind, tokenizer, reference=kind, max_steps=2) for kind in ("cache", "model")
    )
    for each in (trainer, live):
        each.train()
    for name, expected in live.evaluate(new).items():
        if name.startswith("eval_") and name.removeprefix("eval_") in METRICS:
            assert trainer.evaluate(new)[name] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_second_model_is_cached_and_let_go(tokenizer: Any, tmp_path: Path) -> None:
    other = different_model(build_model("llama"), 0.2)
    logs = []
    for kind in ("model", "cache"):
        trainer = make_trainer(
            build_model("llama"), tmp_path / kind, tokenizer, ref_model=other, peft_config=lora(), reference=kind
        )
        trainer.train()
        logs.append(train_logs(trainer))
        assert trainer.statistics.path.name == "tiled" and "different heads" in trainer.describe()
    assert trainer.reference is None
    assert logs[0][0]["chosen_forward_kl"] > 0.1
    for mine, theirs in zip(*logs, strict=True):
        assert mine["chosen_forward_kl"] == pytest.approx(theirs["chosen_forward_kl"], rel=1e-4)


def test_a_policy_that_starts_trained_is_its_own_reference(tokenizer: Any, tmp_path: Path) -> None:
    """The cache is filled before the first update: at the start no KL, afterwards some."""
    first = cached_trainer(tmp_path / "a", tokenizer, reference="model")
    first.train()
    trained = first.model
    second = make_trainer(trained, tmp_path / "b", tokenizer, reference="cache", max_steps=3)
    assert second.reference is None, "with its adapter off it would be another model"
    second.train()
    kls = [line["chosen_forward_kl"] for line in train_logs(second)]
    assert kls[0] == pytest.approx(0.0, abs=1e-5) and kls[-1] > 1e-4


def test_a_resumed_run_reads_the_cache_of_its_start(tokenizer: Any, tmp_path: Path) -> None:
    shared = str(tmp_path / "shared")
    whole = cached_trainer(tmp_path / "whole", tokenizer, adapter=False, reference_cache_dir=shared)
    whole.train()
    common = {"save_strategy": "steps", "save_steps": 2, "reference_cache_dir": shared, "lr_scheduler_type": "constant"}
    cut, uncut = (cached_trainer(tmp_path / n, tokenizer, adapter=False, **common) for n in ("cut", "uncut"))
    uncut.train()
    cut.args.max_steps = 2
    cut.train()
    again = cached_trainer(tmp_path / "cut", tokenizer, adapter=False, **common)
    again.train(resume_from_checkpoint=True)
    weights = trained_weights(uncut)
    for name, weight in trained_weights(again).items():
        assert torch.equal(weight, weights[name]), name


def test_bf16_autocast_is_another_cache(tokenizer: Any, tmp_path: Path) -> None:
    shared = str(tmp_path / "shared")
    for bf16 in (False, True):
        trainer = cached_trainer(tmp_path / str(bf16), tokenizer, bf16=bf16, reference_cache_dir=shared)
        trainer.train()
        assert train_logs(trainer)[0]["chosen_forward_kl"] == pytest.approx(0.0, abs=1e-4)
    assert len(list(Path(shared).glob("*/cache.json"))) == 2


# ---- auto ----


def auto(tokenizer: Any, folder: Path, **changes: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    from tdpo.training import TDPOTrainer

    args = settings(folder, **{"reference": "auto", "reference_cache_dir": str(folder / "caches"), **changes})
    trainer = TDPOTrainer(
        build_model("llama"),
        args=args,
        train_dataset=plain_rows(8),
        processing_class=tokenizer,
        peft_config=lora(),
        say=said.append,
    )
    return trainer, said


@pytest.mark.parametrize("reference", ["model", "cache"])
def test_what_the_reference_is_cannot_be_changed_later(reference: str, tokenizer: Any, tmp_path: Path) -> None:
    """It was rewired after the trainer was made, so that whoever looked earlier saw another reference."""
    statistics = cached_trainer(tmp_path, tokenizer, reference=reference).statistics
    for part, name in (
        (statistics, "source"),
        (statistics, "path"),
        (statistics.source, "head"),
        (statistics.path, "name"),
    ):
        with pytest.raises(FrozenInstanceError):
            setattr(part, name, None)


def test_auto_caches_what_is_used_whole(tokenizer: Any, tmp_path: Path) -> None:
    trainer, said = auto(tokenizer, tmp_path, max_steps=2)  # 2 × 4 of 8 pairs
    assert is_cached(trainer)
    assert said[0].startswith("Reference cache: the reference runs once over 8 pairs, ")
    assert "kB, kept in" in said[0]


def test_auto_keeps_the_model_where_a_cache_would_cost_more(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, said = auto(tokenizer, tmp_path, max_steps=1)
    assert not is_cached(trainer)
    assert said == [
        "The reference runs in every step: the run uses 4 of 8 pairs, and a cache would run the reference over all."
    ]
    assert not (tmp_path / "caches").exists()
    with monkeypatch.context() as patch:
        patch.setattr(source, "AUTO_LIMIT", 10)
        assert "reference='cache' makes it all the same" in auto(tokenizer, tmp_path, max_steps=2)[1][0]
    with monkeypatch.context() as patch:
        patch.setattr(building, "free_bytes", lambda _: building.SPARE)
        assert "the disk cannot hold a cache" in auto(tokenizer, tmp_path, max_steps=2)[1][0]
        with pytest.raises(OSError, match="reference_cache_dir"):
            auto(tokenizer, tmp_path, max_steps=2, reference="cache")
    auto(tokenizer, tmp_path, max_steps=2)
    trainer, said = auto(tokenizer, tmp_path, max_steps=1)
    assert is_cached(trainer) and "read from" in said[0], "what is there is used in any case"


def test_epochs_count_as_visits() -> None:
    assert source.planned_visits(TDPOConfig("x", num_train_epochs=0.5, use_cpu=True), 100) == 50
    args = TDPOConfig("x", max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=2, use_cpu=True)
    assert source.planned_visits(args, 100) == 24


# ---- the head's paths ----


def test_the_frozen_path_is_refused_where_it_does_not_apply(tokenizer: Any, tmp_path: Path) -> None:
    for family, adapter, reason in (
        ("llama", None, "the head, or the embedding that it is tied to, is trained"),
        ("qwen2", None, "the head, or the embedding that it is tied to, is trained"),
        ("gemma2", lora(), "the head has a soft cap"),
        ("llama", lora("lm_head"), "is trained"),
    ):
        with pytest.raises(ValueError, match=rf"head_impl='frozen' does not apply: .*{reason}"):
            make_trainer(build_model(family), tmp_path, tokenizer, peft_config=adapter, head_impl="frozen")


def test_the_log_says_which_path_runs_and_why(tokenizer: Any, tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        make_trainer(build_model("llama"), tmp_path, tokenizer, peft_config=lora())
    assert "Head: frozen and shared, one walk over the vocabulary" in caplog.text
    assert "the policy with its adapter off" in caplog.text
    trainer = make_trainer(build_model("llama"), tmp_path, tokenizer)
    assert "in tiles of the vocabulary, without full logits (the head, or the embedding" in trainer.describe()


def test_a_frozen_head_beside_a_trained_body(tokenizer: Any, tmp_path: Path) -> None:
    """No adapter: the head is shared because it is not trained, and the reference is a copy of the body."""
    model = build_model("llama")
    model.lm_head.requires_grad_(False)
    trainer = make_trainer(model, tmp_path, tokenizer, max_steps=3)
    assert trainer.statistics.path.name == "frozen" and trainer.reference.kind == "copy"
    oracle = build_model("llama")
    oracle.lm_head.requires_grad_(False)
    dense = make_trainer(oracle, tmp_path, tokenizer, max_steps=3, head_impl="dense")
    for each in (trainer, dense):
        each.train()
    for mine, theirs in zip(train_logs(trainer), train_logs(dense), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["chosen_reverse_kl"] == pytest.approx(theirs["chosen_reverse_kl"], rel=1e-3, abs=1e-5)
    assert not math.isclose(train_logs(trainer)[-1]["loss"], math.log(2))


@pytest.mark.parametrize("wrong", [
    ({"reference": "disk"}, "reference must be one of auto, cache, model, got 'disk'"),
    ({"reference": "model", "reference_cache_dir": "x"}, "reference_cache_dir has no effect with reference='model'"),
])  # fmt: skip
def test_settings_are_checked(wrong: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=wrong[1]):
        TDPOConfig(str(tmp_path), use_cpu=True, **wrong[0])


def test_full_logits_cannot_be_cached(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tdpo.scoring.head_path.find_head", lambda _: None)
    with pytest.raises(ValueError, match=r"reference='cache' is not possible: .*full logits.*Use 'auto' or 'model'"):
        cached_trainer(tmp_path, tokenizer)
    trainer, _ = auto(tokenizer, tmp_path)
    assert trainer.statistics.path.name == "logits" and not is_cached(trainer)


def test_a_cache_is_of_one_card_its_kernels_and_one_form_of_rows(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rounds the reference otherwise, and a policy that is rounded in another way does not start at a KL of 0."""
    requests = []
    inner = source.pair_reference_source

    def noted(request: Any, *args: Any, **more: Any) -> Any:
        requests.append(request)
        return inner(request, *args, **more)

    monkeypatch.setattr(source, "pair_reference_source", noted)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    make_trainer(build_model("llama"), tmp_path, tokenizer, plain_rows(2), peft_config=lora("q_proj"))
    [request] = requests
    on_cpu = request.plan(tmp_path, None).fingerprint
    assert (on_cpu.precision, on_cpu.layout) == ("no", "pairs share their prompt"), "as in earlier versions"

    collator = request.collator
    by_cost = replace(request, collator=replace(collator, costs=costs_of(request.policy, False)))
    assert by_cost.plan(tmp_path, None).fingerprint.differences(asdict(on_cpu)) == ["layout"]
    assert len({replace(collator, ranged=ranged).describe_rows() for ranged in (False, True)}) == 2
    on_gpu, values = replace(request, device=torch.device("cuda")), request.values(request.pairs[:1])
    monkeypatch.setattr(source.CacheRequest, "values", lambda self, pairs: values)
    assert on_gpu.plan(tmp_path, None).fingerprint.precision == "no a card"
    monkeypatch.setattr(source, "kernels_apply", lambda weight: weight.shape == (384, 32))
    assert request.plan(tmp_path, None).fingerprint.differences(asdict(on_cpu)) == ["precision"]
    assert on_gpu.plan(tmp_path, None).fingerprint.precision == "no a card kernels"
