"""The names of TRL's DPOTrainer in TDPOConfig and TDPOTrainer: taken, refused all at once, and logged."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from helpers.ppo_cases import ppo_settings
from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import lora, make_trainer, plain_rows, settings, train_logs
from tdpo.batches import ResponseCollator, TokenizedPair
from tdpo.batches.layouts import ResponseBatch
from tdpo.config import trl_names
from tdpo.scoring.pair_metrics import PAIR_METRICS
from tdpo.training import TDPOConfig, TDPOTrainer
from tdpo.training.offline.trl_arguments import TRLArguments

Folders = Callable[[str], Path]


def test_the_table_and_the_configuration_have_the_same_names() -> None:
    assert set(trl_names.NAMES) == set(TRLArguments.__annotations__)


# ---- the configuration ----


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"loss_type": "sigmoid"}, {"loss": "dpo"}),
        ({"loss_type": ["sigmoid"], "loss": "dpo"}, {"loss": "dpo"}),
        ({}, {"loss": "tdpo2", "log_names": "tdpo", "remove_unused_columns": False}),
        ({"precompute_ref_log_probs": True, "reference": "auto"}, {"reference": "cache", "log_names": "both"}),
        ({"precompute_ref_log_probs": False, "reference": "auto", "reference_cache_dir": None}, {"reference": "model"}),
        ({"remove_unused_columns": True}, {"remove_unused_columns": False, "log_names": "tdpo"}),
        ({"disable_dropout": True, "log_names": "tdpo"}, {"log_names": "tdpo"}),
        ({"metric_for_best_model": "eval_rewards/margins"}, {"log_names": "both"}),
        ({"metric_for_best_model": "eval_accuracy"}, {"log_names": "tdpo"}),
        ({"model_init_kwargs": '{"dtype": "float32"}'}, {"model_init_kwargs": {"dtype": "float32"}}),
    ],
)
def test_what_means_the_same_is_taken(given: dict[str, Any], taken: dict[str, Any], tmp_path: Path) -> None:
    config = settings(tmp_path, **given)
    assert {name: getattr(config, name) for name in taken} == taken
    again = dataclasses.replace(config, beta=0.3)
    assert {name: getattr(again, name) for name in taken} == taken, "what was taken fits what it was taken from"


@pytest.mark.parametrize("name", sorted(trl_names.FIXED))
def test_fixed_fields_accept_what_happens_anyway_and_refuse_the_rest(name: str, tmp_path: Path) -> None:
    for value in (*trl_names.FIXED[name].same, None):
        assert settings(tmp_path, **{name: value}).loss == "tdpo2"
    with pytest.raises(ValueError, match=f"{name}='?(7|odd)'? "):
        settings(tmp_path, **{name: 7 if name != "tools" else "odd"})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss_type": "simpo"}, r"loss_type='simpo' is of CPOConfig, .* write loss='simpo' with beta and gamma"),
        ({"loss_type": "ipo"}, r"loss_type='ipo' divides .* loss='ipo' and choose beta anew"),
        (
            {"loss_type": "hinge"},
            r"loss_type='hinge' has no counterpart\. `loss` is one of tdpo2, tdpo1, dpo, ipo",
        ),
        ({"loss_type": ["sigmoid", "sft"]}, r"mixes losses, and one is trained here"),
        ({"loss_type": []}, r"loss_type must be the name of a loss"),
        ({"loss_type": "sigmoid", "loss": "tdpo2"}, r"is loss='dpo', and loss='tdpo2' was given"),
        (
            {"loss_type": "sigmoid", "label_smoothing": 0.1},
            r"=0.1 has no effect in TRL .* write loss='dpo'",
        ),
        ({"precompute_ref_log_probs": True, "reference": "model"}, r"is reference='cache', and reference='model' was"),
        ({"precompute_ref_batch_size": 4, "reference": "model"}, r"precompute_ref_batch_size has no effect"),
        ({"metric_for_best_model": "rewards/margins", "log_names": "tdpo"}, r"write log_names='both'"),
        (
            {"metric_for_best_model": "eval_logits/chosen"},
            r"='eval_logits/chosen' is a number of TRL's that is not logged",
        ),
        ({"log_names": "trl"}, r"log_names must be one of tdpo, both, got 'trl'"),
        ({"model_init_kwargs": {"revision": "v2"}}, r"model_init_kwargs: revision='v2' cannot be passed on"),
        ({"ref_model_init_kwargs": {"quantization_config": 1}}, r"quantization_config must be one of transformers'"),
        ({"model_init_kwargs": "[1]"}, r"model_init_kwargs must be a dictionary"),
        ({"max_prompt_length": True}, r"max_prompt_length must be a whole number ≥ 1 or None, got True"),
        ({"loss_weights": [0.5]}, r"loss_weights=\[0.5\] would be another loss"),
        ({"f_divergence_type": "forward_kl"}, r"='forward_kl' transforms .*loss='f_dpo_forward' .*loss='f_dpo_js': w"),
    ],
)
def test_what_does_not_mean_the_same_is_refused(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **wrong)


def test_everything_wrong_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as refusal:
        settings(tmp_path, loss_type="robust", disable_dropout=False, sync_ref_model=True, beta=-1, label_names=["x"])
    for name in ("loss_type='robust'", "disable_dropout=False", "sync_ref_model=True", "beta must", "label_names has"):
        assert name in str(refusal.value)
    with pytest.raises(TypeError, match=r"unexpected argument 'loss_typ' \(did you mean loss_type\?\); .*'xy'"):
        TDPOConfig("unused", loss_typ="sigmoid", xy=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="remove_unused_columns=True would throw the rows away"):
        ppo_settings(tmp_path, remove_unused_columns=True)  # columns of prompts are what rewards are computed from


def test_trls_names_parse_from_a_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for field in dataclasses.fields(TDPOConfig):  # the parser narrows the fields' types in place, for all who read them
        monkeypatch.setattr(field, "type", field.type)
    line = (
        f"--output_dir {tmp_path} --use_cpu --loss_type sigmoid --precompute_ref_log_probs --no_remove_unused_columns"
    )
    [config] = hf.HfArgumentParser(TDPOConfig).parse_args_into_dataclasses(line.split())
    assert (config.loss, config.reference, config.log_names) == ("dpo", "cache", "both")


# ---- the call ----


class DataCollatorForPreference:
    """Called as TRL's, which is asked for its fields and never called."""

    pad_token_id, max_length, truncation_mode, pad_to_multiple_of = 0, 1024, "keep_start", None


def test_the_order_of_the_arguments_is_trls(tokenizer: Any, tmp_path: Path) -> None:
    args, rows = settings(tmp_path, max_steps=1), plain_rows(4)
    seen: list[dict[str, Any]] = []

    def metrics(evaluated: hf.EvalPrediction) -> dict[str, float]:
        seen.append(evaluated.predictions)  # type: ignore[arg-type]
        return {"worst": evaluated.predictions["margin"].astype("float32").min()}  # type: ignore[call-overload]

    collator = DataCollatorForPreference()
    trainer = TDPOTrainer(
        build_model("llama"), None, args, collator, rows, rows, tokenizer, metrics, [], (None, None), None, lora()
    )
    numbers = trainer.evaluate()
    assert numbers["eval_worst"] == pytest.approx(seen[0]["margin"].min()) and type(numbers["eval_worst"]) is float
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["worst"] == numbers["eval_worst"]
    assert set(seen[0]) == set(PAIR_METRICS) and seen[0]["margin"].shape == (4,)
    assert numbers["eval_margin"] == pytest.approx(seen[0]["margin"].mean(), abs=1e-12)
    trainer._pair_function = lambda evaluated: evaluated.predictions.argmax()  # type: ignore[union-attr]
    with pytest.raises(AttributeError) as error:
        trainer.evaluate()
    assert "compute_metrics gets no logits" in error.value.__notes__[0]
    trainer._pair_function = lambda evaluated: 3.0  # type: ignore[assignment,return-value]
    with pytest.raises(TypeError, match="compute_metrics must return a dictionary of numbers"):
        trainer.evaluate()


def test_calls_that_cannot_be_taken_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    args, model = settings(tmp_path, model_init_kwargs={"dtype": "float32"}), build_model("llama")

    def call(*arguments: Any, **named: Any) -> TDPOTrainer:
        return TDPOTrainer(model, None, args, *arguments, processing_class=tokenizer, **named)

    with pytest.raises(TypeError, match="fourth argument is data_collator, as in TRL: write train_dataset="):
        call(plain_rows(4))
    with pytest.raises(TypeError) as refusal:
        call(hf.DefaultDataCollator(), tokenizer=tokenizer, beta=0.2, odd=1)
    for part in (
        "tokenizer is called processing_class", "'beta' (it belongs into args: TDPOConfig(beta=…))",
        "unexpected argument 'odd'", "data_collator=DefaultDataCollator is not taken",
    ):  # fmt: skip
        assert part in str(refusal.value)
    other = DataCollatorForPreference()
    other.max_length, other.truncation_mode = 64, "keep_end"
    with pytest.raises(ValueError, match=r"=64, and here it is 1024.*TDPOConfig\(max_length=64\).*'keep_end'"):
        call(other)
    with pytest.raises(ValueError, match="model_init_kwargs has no effect: model is loaded already"):
        call(train_dataset=plain_rows(4))
    args = settings(tmp_path)
    with pytest.raises(ValueError, match="quantization_config has no effect: model is loaded already"):
        call(train_dataset=plain_rows(4), quantization_config=object())
    args = settings(tmp_path, ref_model_init_kwargs={"dtype": "float32"})
    with pytest.raises(ValueError, match="ref_model_init_kwargs has no effect: ref_model is None"):
        call(train_dataset=plain_rows(4))


def test_models_by_name_are_loaded_as_asked(tiny_folder: Folders, tmp_path: Path) -> None:
    folder = str(tiny_folder("llama"))

    def trainer(dtype: Any, reference_dtype: Any = None, **more: Any) -> TDPOTrainer:
        kwargs = {"ref_model_init_kwargs": {"torch_dtype": reference_dtype}} if reference_dtype else {}
        return make_trainer(
            folder, tmp_path, None, ref_model=folder if reference_dtype else None, peft_config=lora(),
            model_init_kwargs={"dtype": dtype, "device_map": None}, **kwargs, **more,
        )  # fmt: skip

    made = trainer(torch.bfloat16, "bfloat16", pad_token="<|user|>", dataset_num_proc=4)
    assert made.model.get_base_model().dtype == torch.bfloat16
    assert made.processing_class.pad_token == "<|user|>" and made.collator.pad_token_id == 2
    with pytest.raises(ValueError, match=r"load the reference in torch.float32, and the policy is in torch.bfloat16"):
        trainer("bfloat16", "float32")
    with pytest.raises(ValueError, match="pad_token='<none>' is no token of the tokenizer"):
        trainer("float32", pad_token="<none>")


def test_limits_of_parts_hold_or_are_refused(tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        within = make_trainer(
            build_model("llama"),
            tmp_path,
            tokenizer,
            max_prompt_length=30,
            max_completion_length=40,
            dataset_num_proc=3,
        )
    assert "dataset_num_proc=3: rows are tokenised in one process" in caplog.text
    longest = max(len(pair.prompt_ids) for pair in within.train_dataset)
    with pytest.raises(ValueError, match=rf"max_prompt_length={longest - 1}: \d of 8 pairs have a longer prompt"):
        make_trainer(build_model("llama"), tmp_path, tokenizer, max_prompt_length=longest - 1)
    with pytest.raises(ValueError, match=r"max_completion_length=2: 8 of 8 pairs have a longer response"):
        make_trainer(build_model("llama"), tmp_path, tokenizer, max_completion_length=2)


# ---- the logs ----


def test_tokens_of_sequences_are_those_of_padded_rows() -> None:
    pairs = [TokenizedPair.of([5, 6, 7], [8, 9], [9, 8, 7, 6]), TokenizedPair.of([5], [8], [9, 4])]
    batches = [
        ResponseBatch.from_inputs(ResponseCollator(0, **layout)(pairs))  # type: ignore[arg-type]
        for layout in ({}, {"share_prefixes": True}, {"share_prefixes": True, "max_tokens_per_row": 64})
    ]
    assert [batch.num_sequence_tokens for batch in batches] == [17, 17, 17]
    assert [batch.num_tokens for batch in batches] == [17, 13, 13]


def test_logs_have_trls_names_beside_tdpos_and_go_on_after_resumption(tmp_path: Path) -> None:
    """For a loss of tdpo's own, whose trajectory the names do not touch."""

    def trainer(folder: Path, **more: Any) -> TDPOTrainer:
        return make_trainer(
            build_model("llama"), folder, build_tokenizer(), eval_rows=plain_rows(4, seed=1), max_steps=4,
            eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2, **more,
        )  # fmt: skip

    plain = trainer(tmp_path / "plain")
    plain.train()
    assert not any("/" in name or name.endswith("num_tokens") for line in plain.state.log_history for name in line)
    best = {"load_best_model_at_end": True, "metric_for_best_model": "rewards/margins"}
    both = trainer(tmp_path / "both", **best)
    both.train()
    assert [line["loss"] for line in train_logs(both)] == [line["loss"] for line in train_logs(plain)]
    tokens = [line["num_tokens"] for line in train_logs(both)]
    rows = both.train_dataset
    whole = sum(2 * len(pair.prompt_ids) + sum(map(len, pair.responses)) for pair in rows)
    assert tokens[1] == whole and tokens[3] == 2 * whole and tokens == sorted(tokens)
    evaluations = [line for line in both.state.log_history if "eval_loss" in line]
    assert [line["eval_num_tokens"] for line in evaluations] == [whole, 2 * whole]
    for prefix, lines in (("", train_logs(both)), ("eval_", evaluations)):
        for line in lines:
            for name, own in trl_names.LOG_NAMES.items():
                assert line[prefix + name] == line[prefix + own]
    best_line = max(evaluations, key=lambda line: line["eval_rewards/margins"])
    assert both.state.best_metric == best_line["eval_rewards/margins"]
    assert both.state.best_model_checkpoint == str(tmp_path / "both" / f"checkpoint-{best_line['step']}")

    resumed = trainer(tmp_path / "both", **best)
    resumed.train(resume_from_checkpoint=str(tmp_path / "both" / "checkpoint-2"))
    assert [line["num_tokens"] for line in train_logs(resumed)] == tokens
