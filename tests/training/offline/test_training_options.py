"""What `TDPOTrainer` obeys, what it refuses, what it switches off, and when it stops."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import (
    lora,
    make_trainer,
    plain_rows,
    settings,
    train_logs,
)
from tdpo import TDPOTrainer as lazily_exported
from tdpo.config import Recipe
from tdpo.training import TDPOConfig, TDPOTrainer
from tdpo.training.offline.config import groups_by_length
from tdpo.training.policy import switch_off_dropout
from tdpo.workflows.trainer_arguments import pair_arguments

Models = Callable[..., Any]
Folders = Callable[[str], Path]
KLS = ("chosen_forward_kl", "rejected_forward_kl", "chosen_reverse_kl", "rejected_reverse_kl")

# ---- what is refused ----


def test_arguments_that_do_not_fit_together(tokenizer: Any, tmp_path: Path, tiny_folder: Folders) -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = build_model("llama")
    with pytest.raises(ValueError, match=r"ref_model holds the very weights that are trained"):
        make_trainer(model, tmp_path, tokenizer, ref_model=model)
    with pytest.raises(ValueError, match="one tokenizer for both"):
        make_trainer(model, tmp_path, tokenizer, ref_model=build_model("llama", vocab_size=400))
    with pytest.raises(ValueError, match="the model has an adapter already"):
        make_trainer(get_peft_model(build_model("llama"), lora()), tmp_path, tokenizer, peft_config=lora())
    for prompts in (PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),):
        with pytest.raises(ValueError, match="PromptTuningConfig puts tokens of its own before the prompt"):
            make_trainer(build_model("llama"), tmp_path, tokenizer, peft_config=prompts)
        with pytest.raises(ValueError, match="PromptTuningConfig puts tokens of its own"):
            make_trainer(get_peft_model(build_model("llama"), prompts), tmp_path, tokenizer)
    with pytest.raises(ValueError, match="nothing would be trained"):
        make_trainer(build_model("llama").requires_grad_(False), tmp_path, tokenizer)
    with pytest.raises(TypeError, match="args must be a TDPOConfig, got TrainingArguments"):
        TDPOTrainer(model, args=hf.TrainingArguments(str(tmp_path), use_cpu=True), processing_class=tokenizer)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="processing_class is missing"):
        make_trainer(model, tmp_path, None)


def test_tokenizers_that_do_not_fit(tmp_path: Path, tiny_folder: Folders) -> None:
    bare = build_tokenizer()
    bare.pad_token = None
    trainer = make_trainer(build_model("llama"), tmp_path, bare)
    assert trainer.processing_class.pad_token == "<|end|>", "the end-of-sequence token pads"
    assert bare.pad_token is None, "the user's own tokenizer is left alone"
    bare.eos_token = None
    with pytest.raises(ValueError, match="neither a pad nor an end-of-sequence token"):
        make_trainer(build_model("llama"), tmp_path, bare)
    with pytest.raises(ValueError, match=r"the data holds token \d+, but the model knows 100 tokens"):
        make_trainer(build_model("llama", vocab_size=100), tmp_path, build_tokenizer())
    by_folder = make_trainer(str(tiny_folder("llama")), tmp_path, None)
    assert by_folder.processing_class.pad_token == "<|pad|>"


@pytest.mark.parametrize(
    "wrong, message",
    [
        (
            {"loss": "kto"},
            r"loss must be one of tdpo2, tdpo1, dpo, ipo, f_dpo_forward, f_dpo_js, simpo, sft, kl, got 'kto'",
        ),
        ({"beta": 0.0}, r"beta must be a number > 0 or None, got 0.0"),
        ({"beta": math.nan}, r"beta must be a number > 0 or None, got nan"),
        ({"beta": "0.1"}, r"beta must be a number > 0 or None, got '0.1'"),
        ({"alpha": -0.1}, r"alpha must be a number ≥ 0, got -0.1"),
        ({"alpha": math.inf}, r"alpha must be a number ≥ 0, got inf"),
        ({"loss": "dpo", "alpha": 0.3}, r"alpha=0.3 has no effect with loss='dpo'"),
        ({"loss": "sft", "beta": 0.3}, r"beta=0.3 has no effect with loss='sft'"),
        ({"loss": "sft", "label_smoothing": 0.3}, r"label_smoothing=0.3 has no effect with loss='sft'"),
        ({"loss": "ipo", "label_smoothing": 0.3}, r"label_smoothing=0.3 has no effect with loss='ipo'"),
        ({"loss": "ipo", "alpha": 0.3}, r"alpha=0.3 has no effect with loss='ipo'"),
        ({"loss": "ipo", "beta": 0.0}, r"beta must be a number > 0 or None, got 0.0"),
        ({"loss": "tdpo1", "alpha": 0.3}, r"alpha=0.3 has no effect with loss='tdpo1'"),
        ({"label_smoothing": 0.5}, r"label_smoothing must be a number ≥ 0 and < 0.5, got 0.5"),
        ({"label_smoothing": -0.1}, r"label_smoothing must be a number ≥ 0 and < 0.5, got -0.1"),
        ({"alpha": None}, r"alpha must be a number ≥ 0, got None"),
        ({"loss": "dpo", "gamma": 0.3}, r"gamma=0.3 has no effect with loss='dpo'; leave it out or use loss='simpo'"),
        ({"loss": "simpo", "gamma": -0.1}, r"gamma must be a number ≥ 0 or None, got -0.1"),
        ({"loss": "simpo", "beta": "2"}, r"beta must be a number > 0 or None, got '2'"),
        ({"loss": "simpo", "alpha": 0.3}, r"alpha=0.3 has no effect with loss='simpo'"),
        ({"loss": "simpo", "label_smoothing": 0.1}, r"label_smoothing=0.1 has no effect with loss='simpo'"),
        ({"kl": {"direction": "backward"}}, r"kl.direction must be one of forward, reverse, js, got 'backward'"),
        ({"kl": {"coefficient": 0}}, r"kl.coefficient must be finite and > 0, got 0"),
        (
            {"kl": {"coef": 1}},
            r"kl must be a dictionary with some of direction, on, coefficient, weight, target, target_direction, "
            r"got {'coef': 1}",
        ),
        (
            {"kl": 0.1},
            r"kl must be a dictionary with some of direction, on, coefficient, weight, target, target_direction, "
            r"got 0.1",
        ),
        ({"kl": "reverse"}, r"kl='reverse' is no JSON"),
        ({"kl": {"weight": 0.3}}, r"kl.weight has no effect with direction forward"),
        ({"kl": {"direction": "js", "weight": 1.0}}, r"kl.weight must lie strictly between 0 and 1, got 1.0"),
        ({"loss": "kl", "beta": 0.3}, r"beta=0.3 has no effect with loss='kl'"),
        ({"max_length": 1}, r"max_length must be a whole number ≥ 2 or None, got 1"),
        ({"max_length": 12.5}, r"max_length must be a whole number"),
        ({"max_length": True}, r"max_length must be a whole number"),
        ({"head_impl": "fast"}, r"head_impl must be one of auto, frozen, tiled, dense, got 'fast'"),
        ({"prefix_sharing": "yes"}, r"prefix_sharing must be one of auto, on, off, got 'yes'"),
        ({"label_names": ["labels"]}, r"label_names has no effect"),
        ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor .* use label_smoothing"),
        ({"neftune_noise_alpha": 5.0}, r"neftune_noise_alpha would put noise into policy and reference"),
        ({"bf16_full_eval": True}, r"bf16_full_eval would evaluate the policy in another precision"),
        ({"include_for_metrics": ["loss"]}, r"include_for_metrics has no effect"),
        ({"batch_eval_metrics": True}, r"batch_eval_metrics has no effect"),
        ({"prediction_loss_only": True}, r"prediction_loss_only has no effect"),
        ({"average_tokens_across_devices": False}, r"average_tokens_across_devices=False has no effect"),
        ({"max_tokens_per_row": 1}, r"max_tokens_per_row must be a whole number ≥ 2 or None, got 1"),
        ({"max_tokens_per_row": 64.0}, r"max_tokens_per_row must be a whole number .* got 64.0"),
        ({"max_tokens_per_row": True}, r"max_tokens_per_row must be a whole number .* got True"),
        (
            {"max_tokens_per_row": 64, "prefix_sharing": "off"},
            r"max_tokens_per_row=64 has no effect with prefix_sharing",
        ),
        (
            {"max_tokens_per_row": 64, "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1},
            r"max_tokens_per_row=64 has no effect with per_device_train_batch_size=1",
        ),
        (
            {"train_sampling_strategy": "batch_rebalance"},
            r"strategy must be one of random, sequential, group_by_length",
        ),
        ({"accelerator_config": {"dispatch_batches": True}}, r"dispatch_batches=True would cut batches apart"),
    ],
)
def test_settings_that_are_wrong_or_without_effect_are_refused(
    wrong: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **wrong)


def test_several_wrong_settings_are_named_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"TDPOConfig: loss must .*; beta must .*; max_length must "):
        settings(tmp_path, loss="x", beta=-1, max_length=0)


@pytest.mark.parametrize(
    ("metric", "data_sets", "advice"),
    [
        ("rewards/acuracies", False, r"'rewards/acuracies' is not logged .* Did you mean 'rewards/accuracies'\?"),
        ("eval_chosen_foward_kl", False, r"Did you mean 'chosen_forward_kl'\? They log loss, accuracy, margin, "),
        ("eval_margin", True, r"Did you mean 'easy_margin'\?"),
        ("nonsense", False, r"of this trainer\. They log loss"),
        ("eval_margin", False, None),
        ("rewards/margins", False, None),
        ("eval_hard_rewards/margins", True, None),
        ("loss", False, None),
    ],
)
def test_a_metric_for_the_best_model_that_is_not_logged_is_refused(
    metric: str, data_sets: bool, advice: str | None, tokenizer: Any, tmp_path: Path
) -> None:
    rows = plain_rows(2, seed=1)
    evaluated = {"eval_rows": {"easy": rows, "hard": rows} if data_sets else rows, "eval_strategy": "epoch"}
    with nullcontext() if advice is None else pytest.raises(ValueError, match=advice):
        make_trainer(build_model("llama"), tmp_path, tokenizer, metric_for_best_model=metric, **evaluated)


def test_the_metric_for_the_best_model_may_be_one_of_a_function(tokenizer: Any, tmp_path: Path) -> None:
    args = settings(tmp_path, metric_for_best_model="of_my_own", eval_strategy="epoch")
    rows = plain_rows(4)
    TDPOTrainer(
        build_model("llama"), None, args, None, rows, rows, tokenizer, compute_metrics=lambda _: {"of_my_own": 1.0}
    )


def test_settings_parse_from_a_command_line(tmp_path: Path) -> None:
    """As scripts written for transformers and TRL do it."""
    line = f"--output_dir {tmp_path} --use_cpu --loss dpo --beta 0.3 --max_length 77 --logging_steps 5"
    [config] = hf.HfArgumentParser(TDPOConfig).parse_args_into_dataclasses(line.split())
    assert (config.loss, config.beta, config.max_length, config.logging_steps) == ("dpo", 0.3, 77, 5)
    defaults = TDPOConfig(output_dir=str(tmp_path), use_cpu=True)
    assert (defaults.loss, defaults.beta, defaults.alpha, defaults.max_length) == ("tdpo2", 0.1, 0.5, 1024)
    assert (TDPOConfig(output_dir=str(tmp_path), use_cpu=True, beta=None).beta, defaults.gamma) == (0.1, None)
    [parsed] = hf.HfArgumentParser(TDPOConfig).parse_args_into_dataclasses(
        f"--output_dir {tmp_path} --use_cpu --loss simpo".split()
    )
    copied = dataclasses.replace(parsed, gamma=0.3)
    assert [(c.beta, c.gamma) for c in (parsed, copied)] == [(2.0, 1.0), (2.0, 0.3)]
    assert settings(tmp_path, loss="simpo", beta=0.1).gamma == 0.05, "a β that was given stays"
    assert not defaults.logging_nan_inf_filter
    assert TDPOConfig.from_dict(defaults.to_dict()) if hasattr(TDPOConfig, "from_dict") else True


def test_a_recipes_layout_and_order_reach_the_trainer(tmp_path: Path) -> None:
    def arguments(**training: Any) -> TDPOConfig:
        keys = {"run_dir": str(tmp_path), "data": {"train": "pairs.jsonl"}, "training": training}
        return pair_arguments(Recipe.model_validate(keys))

    plain = arguments()
    assert (plain.prefix_sharing, plain.max_tokens_per_row, groups_by_length(plain)) == ("auto", None, False)
    packed = arguments(prefix_sharing="on", max_tokens_per_row=512, group_by_length=True)
    assert (packed.prefix_sharing, packed.max_tokens_per_row, groups_by_length(packed)) == ("on", 512, True)


def test_checkpointing_under_its_old_name(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked = settings(tmp_path, gradient_checkpointing=True)
        off = settings(tmp_path, gradient_checkpointing=False)
    assert asked.activation_checkpointing
    assert asked.activation_checkpointing_kwargs == {"use_reentrant": False}
    assert not off.activation_checkpointing


def test_one_process_uses_one_device(tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """transformers would wrap the model in DataParallel, which tears pairs apart."""
    args = settings(tmp_path)
    args._n_gpu = 2
    with caplog.at_level(logging.WARNING):
        trainer = TDPOTrainer(build_model("llama"), args=args, train_dataset=plain_rows(4), processing_class=tokenizer)
    assert trainer.args.n_gpu == 1
    assert "start 2 with `accelerate launch`" in caplog.text


def test_training_half_precision_weights_is_pointed_out(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = {"family": "llama", "dtype": torch.bfloat16}
    with caplog.at_level(logging.WARNING):
        make_trainer(build_model("llama"), tmp_path, tokenizer, bf16=True)
        make_trainer(build_model(**half), tmp_path, tokenizer, peft_config=lora())
        assert "rounded away" not in caplog.text
        make_trainer(build_model(**half), tmp_path, tokenizer)
        assert "rounded away" not in caplog.text, "they are held in float32"
        make_trainer(build_model(**half), tmp_path, tokenizer, precision="bfloat16")
    assert "Weights are trained in bfloat16, where a step below about 1/500 of a weight" in caplog.text


def test_the_trainer_is_exported_lazily() -> None:
    assert lazily_exported is TDPOTrainer


# ---- dropout ----


def noisy_model(kind: str) -> Any:
    """Models with every kind of dropout there is, all switched on."""
    small = {"vocab_size": 384, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    moe = {"intermediate_size": 48, "num_local_experts": 2, "num_key_value_heads": 2}
    opt = {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 256}
    makers: dict[str, Callable[[], Any]] = {
        "modules (GPT-2)": lambda: hf.GPT2Config(
            vocab_size=384, n_embd=32, n_layer=2, n_head=4, n_positions=256, attn_pdrop=0.4, **ids
        ),
        "attribute (Llama)": lambda: hf.LlamaConfig(**small, **ids, intermediate_size=48, attention_dropout=0.5),
        "configuration (Falcon)": lambda: hf.FalconConfig(**small, **ids, hidden_dropout=0.4, attention_dropout=0.4),
        "layer drop (OPT)": lambda: hf.OPTConfig(**small, **ids, **opt, dropout=0.3, layerdrop=0.5),
        "jitter (Mixtral)": lambda: hf.MixtralConfig(**small, **ids, **moe, router_jitter_noise=0.5),
    }
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(makers[kind]())


NOISY = ["modules (GPT-2)", "attribute (Llama)", "configuration (Falcon)", "layer drop (OPT)", "jitter (Mixtral)"]


@pytest.mark.parametrize("kind", NOISY)
def test_the_models_own_randomness_is_switched_off(kind: str) -> None:
    model = noisy_model(kind).train()
    ids = torch.arange(5, 45)[None]

    def said() -> torch.Tensor:
        return model(input_ids=ids).logits.detach()

    torch.manual_seed(0)
    assert not torch.equal(said(), said()), "the case does what it says"
    switch_off_dropout(model)
    first = said()
    assert torch.equal(first, said())
    torch.testing.assert_close(first, model.eval()(input_ids=ids).logits.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("adapter", ["none", "peft_config", "wrapped before"])
def test_an_untrained_policy_does_not_differ_from_its_reference_by_dropout(
    adapter: str, tokenizer: Any, tmp_path: Path
) -> None:
    model: Any = noisy_model("modules (GPT-2)")
    if adapter == "wrapped before":
        from peft import get_peft_model

        model = get_peft_model(model, lora("c_attn"))
    config = lora("c_attn") if adapter == "peft_config" else None
    trainer = make_trainer(model, tmp_path, tokenizer, peft_config=config, max_steps=1)
    trainer.train()
    assert [train_logs(trainer)[0][name] for name in KLS] == pytest.approx([0.0] * 4, abs=1e-12)


def test_an_adapters_dropout_is_respected(tokenizer: Any, tmp_path: Path) -> None:
    model = build_model("llama")
    trainer = make_trainer(model, tmp_path, tokenizer, peft_config=lora(lora_dropout=0.4), lr_scheduler_type="constant")
    assert {m.p for m in trainer.model.modules() if isinstance(m, nn.Dropout)} == {0.4}
    trainer.train()
    inputs = trainer._prepare_inputs(trainer.data_collator(trainer.train_dataset))
    losses = []
    for mode in (True, True, False, False):
        trainer.model.train(mode)
        losses.append(float(trainer.compute_loss(trainer.model, inputs).detach()))
    assert losses[0] != losses[1], "training draws new masks"
    assert losses[2] == losses[3], "evaluation does not"


# ---- when it goes wrong ----


def test_a_loss_that_is_not_finite_stops_training(tokenizer: Any, tmp_path: Path) -> None:
    trainer = make_trainer(build_model("llama"), tmp_path, tokenizer, learning_rate=1e30, max_steps=5)
    with pytest.raises(FloatingPointError, match=r"the loss became nan at step 1 .*Lower the learning rate"):
        trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1], "nothing made up in its place"


def test_an_infinite_kl_stops_training_and_says_why(tokenizer: Any, tmp_path: Path) -> None:
    """A policy that gives a token probability 0 where the reference does not."""
    model = build_model("gpt_neox")
    reference = build_model("gpt_neox")
    head = nn.Linear(32, 384, bias=True)
    head.weight = model.get_output_embeddings().weight
    nn.init.zeros_(head.bias)
    head.bias.data[300] = -torch.inf
    model.set_output_embeddings(head)
    trainer = make_trainer(model, tmp_path, tokenizer, ref_model=reference, loss="tdpo1", max_steps=1)
    with pytest.raises(FloatingPointError, match="a policy that forbids what the reference allows has an infinite KL"):
        trainer.train()


def test_a_gradient_that_is_not_finite_stops_training_even_in_the_last_step(tokenizer: Any, tmp_path: Path) -> None:
    trainer = make_trainer(build_model("llama"), tmp_path, tokenizer, max_steps=1)
    trainer.model.model.norm.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(
        FloatingPointError, match=r"gradient's norm became (nan|inf) at step 1, though the loss was finite"
    ):
        trainer.train()


# ---- what it says ----


@pytest.mark.parametrize(("base", "warned"), [("smollm2-135m", 0), ("smollm9", 2)])
def test_peft_does_not_look_for_the_bundled_model_on_the_hub_aloud(
    base: str, warned: int, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> bool:
        raise OSError("no network,\nnot even here")

    monkeypatch.setattr("peft.utils.other.file_exists", unreachable)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    model = build_model("llama")
    model.name_or_path = base
    trainer = make_trainer(model, tmp_path, tokenizer, peft_config=lora("q_proj"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.save_model(tmp_path / "adapter")
    about = [str(each.message) for each in caught if base in str(each.message)]
    assert len(about) == warned, about
