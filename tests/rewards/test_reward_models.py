"""Reward models: whole or refused, the same reward in a batch as alone, and room for every prompt with a response."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MambaConfig,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from helpers.ppo_cases import make_ppo
from helpers.tiny_models import build_model, build_tokenizer
from tdpo.environments import Prompt, RewardError
from tdpo.rewards import models as reward_models
from tdpo.rewards.functions import RewardModel, rewards_of

SIZE = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "hidden_size": 16}
GPT2_SIZE = {"n_embd": 16, "n_layer": 1, "n_head": 2}
TEXTS = [" sat", " sat on the mat and ran away", "", " a", " what a wonderful day it was, and what a day"]


def classifier(family: str = "llama", **changes: Any) -> Any:
    """A classifier whose rewards differ clearly from text to text."""
    given = {"vocab_size": 384, "num_labels": 1, "pad_token_id": 0, **changes}
    made: dict[str, Callable[[], Any]] = {
        "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**SIZE, **given)),
        "gpt2": lambda: GPT2ForSequenceClassification(GPT2Config(**GPT2_SIZE, **given)),
        "bert": lambda: BertForSequenceClassification(BertConfig(**SIZE, **given)),
        "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**SIZE, **given)),
    }
    torch.manual_seed(1)
    model = made[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    return model


def saved(folder: Path, model: Any, tokenizer: Any | None = None) -> Path:
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, Any]], Any], file: str = "model.safetensors") -> None:
    weights = load_file(folder / file)
    change(weights)
    save_file(weights, folder / file, metadata={"format": "pt"})


def reward_model(folder: Path) -> RewardModel:
    return RewardModel(folder, build_tokenizer())


# ---- weights ----


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: w.pop("score.weight"), r"lacks weights that Llama.* needs, such as score\.weight"),
        (lambda w: w.pop("model.norm.weight"), r"such as model\.norm\.weight"),
        (
            lambda w: w.update({"score.weight": torch.zeros(2, 16)}),
            r"score\.weight of .* is \(2, 16\).* needs \(1, 16\)",
        ),
        (lambda w: w.update({"model.norm.weight": torch.ones(8)}), r"model\.norm\.weight of .* is \(8,\)"),
    ],
    ids=["head missing", "another missing", "head of another shape", "another of another shape"],
)
def test_what_would_start_at_random_is_refused(change: Any, reason: str, tmp_path: Path) -> None:
    folder = saved(tmp_path, classifier(), build_tokenizer())
    reward_model(folder)
    change_weights(folder, change)
    with pytest.raises(ValueError, match=reason):
        reward_model(folder)


def test_other_models_are_no_reward_models(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks weights.*a causal language model is none"):
        reward_model(saved(tmp_path / "lm", build_model("llama"), build_tokenizer()))
    MambaConfig(vocab_size=384, hidden_size=16, num_hidden_layers=1).save_pretrained(tmp_path / "mamba")
    with pytest.raises(ValueError, match="of a kind that transformers has no classifier of"):
        reward_model(tmp_path / "mamba")
    folder = saved(tmp_path / "broken", classifier(), build_tokenizer())
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="cut short or broken"):
        reward_model(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"pickled weights.*AutoModelForSequenceClassification"):
        reward_model(folder)


def adapted(base: Any, **changes: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(2)
    given = {"r": 4, "task_type": "SEQ_CLS", "target_modules": ["q_proj"], "init_lora_weights": False, **changes}
    return get_peft_model(base, LoraConfig(**given)).eval()


def test_an_adapter_comes_with_its_base_and_its_head(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    saved(tmp_path / "lm", LlamaForCausalLM(LlamaConfig(vocab_size=384, pad_token_id=0, **SIZE)), build_tokenizer())
    auto: Any = AutoModelForSequenceClassification
    model = adapted(auto.from_pretrained(tmp_path / "lm", num_labels=1, trust_remote_code=False))
    model.save_pretrained(tmp_path / "adapter")
    loaded = reward_model(tmp_path / "adapter")
    ids = build_tokenizer()("the cat sat", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = float(model(ids).logits[0, 0])
    assert loaded(["the cat"], [" sat"]) == pytest.approx([expected], rel=1e-5)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())

    file = "adapter_model.safetensors"
    change_weights(tmp_path / "adapter", lambda w: w.pop(next(key for key in w if "lora_A" in key)), file)
    with pytest.raises(ValueError, match=r"adapter .* lacks 1 weights that .*, such as .*lora_A"):
        reward_model(tmp_path / "adapter")
    change_weights(tmp_path / "adapter", lambda w: w.pop("base_model.model.score.weight"), file)
    with pytest.raises(ValueError, match=r"neither of them holds score\.weight.*modules_to_save"):
        reward_model(tmp_path / "adapter")


def test_an_adapter_of_a_whole_reward_model_needs_no_head(tmp_path: Path) -> None:
    saved(tmp_path / "whole", classifier(), build_tokenizer())
    base = LlamaForSequenceClassification.from_pretrained(tmp_path / "whole")
    model = adapted(base, task_type=None)
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = float(model(build_tokenizer()("the cat", return_tensors="pt")["input_ids"]).logits[0, 0])
    assert reward_model(tmp_path / "adapter")(["the cat"], [""]) == pytest.approx([expected], rel=1e-5)
    saved(tmp_path / "whole", classifier(num_labels=3), build_tokenizer())
    with pytest.raises(ValueError, match=r"score\.weight of .*whole is \(3, 16\).* needs \(1, 16\)"):
        reward_model(tmp_path / "adapter")


# ---- padding ----


def no_pad(tokenizer: Any) -> Any:
    tokenizer.pad_token = None
    return tokenizer


def left(tokenizer: Any) -> Any:
    tokenizer.padding_side = "left"
    return tokenizer


@pytest.mark.parametrize(
    ("family", "changes", "change_tokenizer"),
    [
        ("gpt2", {"pad_token_id": None}, no_pad),
        ("llama", {"pad_token_id": None}, no_pad),
        ("llama", {"pad_token_id": -1}, left),
        ("llama", {"pad_token_id": 5}, lambda tokenizer: tokenizer),
        ("llama", {}, left),
        ("gpt2", {}, left),
        ("bert", {}, left),
        ("roberta", {"pad_token_id": 1}, left),
    ],
    ids=["no pad", "no pad", "pad of -1", "two pads", "left", "left, positions", "left, first token", "roberta"],
)
def test_rewards_of_a_batch_are_those_of_each_alone(
    family: str, changes: dict[str, Any], change_tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = classifier(family, **changes)
    folder = saved(tmp_path, model, change_tokenizer(build_tokenizer()))
    if change_tokenizer is left:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "padding_side": "left"}))
    loaded = reward_model(folder)
    assert loaded.tokenizer.padding_side == ("left" if change_tokenizer is left else "right")
    texts = [*TEXTS, " the end<|end|>", "<|end|>"]
    alone = []
    for text in texts:
        ids = build_tokenizer()("the cat" + text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            alone.append(float(model(ids).logits[0, 0]))
    assert max(alone) - min(alone) > 0.01, "the texts must be told apart"
    assert loaded(["the cat"] * len(texts), texts) == pytest.approx(alone, rel=1e-4, abs=1e-6)
    assert loaded.padding_side is not None and "one text at a time" not in caplog.text


def test_where_no_padding_is_right_texts_are_scored_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that looks at the width of its row, padding included."""

    def widened(_module: Any, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        output.logits = output.logits + kwargs["input_ids"].shape[1]
        return output

    def load(*given: Any, **options: Any) -> Any:
        model = load_classifier(*given, **options)
        model.register_forward_hook(widened, with_kwargs=True)
        return model

    load_classifier = reward_models.load_reward_classifier
    monkeypatch.setattr(reward_models, "load_reward_classifier", load)
    with caplog.at_level(logging.WARNING):
        loaded = reward_model(saved(tmp_path, classifier(), build_tokenizer()))
    assert "scores one text at a time" in caplog.text
    together = loaded(["the cat"] * len(TEXTS), TEXTS)
    assert together == [loaded(["the cat"], [text])[0] for text in TEXTS]


def test_ppo_trains_on_a_reward_model_without_a_padding_token(tmp_path: Path) -> None:
    folder = saved(tmp_path / "rm", classifier("gpt2", pad_token_id=None), no_pad(build_tokenizer()))
    trainer = make_ppo(
        build_model("llama"), tmp_path / "run", build_tokenizer(), str(folder), ["a", "the"], iterations=1
    )
    trainer.train()
    assert trainer.state.log_history[0]["reward_std"] > 0


# ---- what is found when the trainer is made ----


def make_trainer(folder: Path, prompts: list[Any], **changes: Any) -> Any:
    return make_ppo(build_model("llama"), folder / "run", build_tokenizer(), str(folder), prompts, **changes)


def test_a_reward_model_too_short_for_prompt_and_response_is_refused(tmp_path: Path) -> None:
    model = classifier("gpt2", n_positions=12)
    folder = saved(tmp_path, model, build_tokenizer())
    make_trainer(folder, ["the cat"], max_new_tokens=4)
    with pytest.raises(
        ValueError, match=r"prompt 'train_dataset:1' has \d+ tokens for the reward model .* of 12 tokens"
    ):
        make_trainer(folder, ["the", "the cat sat on the mat and the dog ran away"], max_new_tokens=4)
    with pytest.raises(ValueError, match=r"prompt 'eval_dataset:0' .*max_new_tokens=11"):
        make_trainer(folder, ["a"], eval_dataset=["the cat"], max_new_tokens=11)
    # A response may take more of the reward model's tokens than the policy's.
    rewards = rewards_of(str(folder), None, build_tokenizer())
    with pytest.raises(RewardError, match=r"13 tokens for the reward model .*, and it has room for 12"):
        rewards([Prompt("p", "<|end|>" * 12)], ["<|end|>"])


def test_positions_that_begin_after_padding_are_counted(tmp_path: Path) -> None:
    model = classifier("roberta", pad_token_id=1, max_position_embeddings=20)
    loaded = reward_model(saved(tmp_path, model, build_tokenizer()))
    assert loaded.positions == 18
    loaded(["<|end|>" * 18], [""])
    with pytest.raises(ValueError, match="19 tokens"):
        loaded(["<|end|>" * 19], [""])


def test_messages_need_a_chat_template(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    folder = saved(tmp_path, classifier(), tokenizer)
    make_trainer(folder, ["the cat"])
    with pytest.raises(ValueError, match=r"cannot read prompt 'train_dataset:0': its tokenizer has no chat template"):
        make_trainer(folder, [[{"role": "user", "content": "the cat"}]])


def test_a_foreign_vocabulary_is_not_taken_for_the_policys(tmp_path: Path) -> None:
    folder = saved(tmp_path / "bare", classifier(vocab_size=400))
    assert RewardModel(folder, policy := build_tokenizer()).tokenizer is policy
    with pytest.raises(ValueError, match=r"knows 5000 tokens, and the policy's .* tokenizer has only"):
        reward_model(saved(tmp_path / "foreign", classifier(vocab_size=5000)))
