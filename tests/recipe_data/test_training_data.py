"""What goes into a training, and what comes out of it for others to load."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from helpers.tiny_models import build_model
from helpers.training_cases import (
    lora,
    make_trainer,
    plain_rows,
    train_logs,
)
from tdpo.batches import tokenize_pairs
from tdpo.models import load_causal_lm
from tdpo.preferences import BadPreferences, load_preferences, preferences_from_dataset

Folders = Callable[[str], Path]

# ---- saving ----


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_what_is_saved_loads_without_this_library(
    kind: str, tokenizer: Any, tiny_folder: Folders, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM

    adapter = kind == "adapter"
    trainer = make_trainer(
        str(tiny_folder("qwen2")), tmp_path / "run", tokenizer, peft_config=lora() if adapter else None
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert ("adapter_model.safetensors" in names) == adapter
    assert ("model.safetensors" in names) == (not adapter)
    assert "tokenizer.json" in names
    if adapter:
        assert (tmp_path / "model" / "adapter_model.safetensors").stat().st_size < 200_000
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    trainer.model.eval()
    expected = trainer.model(input_ids=ids).logits
    loader = AutoPeftModelForCausalLM if adapter else hf.AutoModelForCausalLM
    plain = loader.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(plain(input_ids=ids).logits, expected, rtol=0, atol=0)
    torch.testing.assert_close(load_causal_lm(tmp_path / "model")(input_ids=ids).logits, expected, rtol=0, atol=0)
    assert hf.AutoTokenizer.from_pretrained(tmp_path / "model")("the cat")["input_ids"] == [265, 291]


# ---- the data that users bring ----


@pytest.mark.parametrize("key", ["train", "eval"])
def test_a_file_that_is_not_there_is_named_with_its_key(key: str, tmp_path: Path) -> None:
    from tdpo.config import Recipe, load_recipe
    from tdpo.recipe_data.pairs import read_data

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain_rows(2)))
    files = {"train": str(tmp_path / "rows.jsonl"), key: str(tmp_path / "row.jsonl")}
    recipe = load_recipe({"run_dir": str(tmp_path / "run"), "data": files})
    assert isinstance(recipe, Recipe)
    with pytest.raises(
        FileNotFoundError, match=rf"^data\.{key}: .*row\.jsonl: no such file.*did you mean .*rows\.jsonl"
    ):
        read_data(recipe)


def test_every_form_of_dataset_gives_the_same_pairs(tokenizer: Any, tmp_path: Path) -> None:
    from datasets import Dataset

    rows = plain_rows(6)
    implicit = [{"chosen": r["prompt"] + r["chosen"], "rejected": r["prompt"] + r["rejected"]} for r in rows]
    preferences = preferences_from_dataset(rows)
    forms = {
        "list": rows,
        "generator": (row for row in rows),
        "datasets": Dataset.from_list(rows),
        "preferences": preferences,
        "tokenized": tokenize_pairs(preferences.rows, tokenizer, 256),
    }
    found = {name: make_trainer(build_model("llama"), tmp_path, tokenizer, form) for name, form in forms.items()}
    ids = {n: [(p.prompt_ids, p.chosen_ids, p.rejected_ids) for p in t.train_dataset] for n, t in found.items()}
    assert all(ids[name] == ids["list"] for name in forms)
    without_prompt = make_trainer(build_model("llama"), tmp_path, tokenizer, implicit)
    wholes = [(p.prompt_ids + p.chosen_ids, p.prompt_ids + p.rejected_ids) for p in without_prompt.train_dataset]
    assert wholes == [(prompt + chosen, prompt + rejected) for prompt, chosen, rejected in ids["list"]]
    assert all(p.prompt_ids for p in without_prompt.train_dataset), "the shared start is the prompt"


def test_lengths_are_limited_by_max_length_and_by_the_models_positions(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": "the cat", "chosen": " sat" * 300, "rejected": " ran away"}, *plain_rows(3)]
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(build_model("llama"), tmp_path, tokenizer, rows)
    assert trainer.tokenization["train"]["max_length"] == 256
    assert "train data: 1 of 4 rows are longer than max_length=256: 47 response tokens were cut" in caplog.text
    trainer.train()
    short = make_trainer(build_model("llama"), tmp_path, tokenizer, rows, max_length=20)
    assert short.tokenization["train"]["longest"] == 20


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def conversational(row: dict[str, Any], *, implicit: bool = False) -> dict[str, Any]:
    prompt = [{"role": "system", "content": "be kind"}, {"role": "user", "content": row["prompt"]}]
    sides = {side: [{"role": "assistant", "content": row[side].strip()}] for side in ("chosen", "rejected")}
    if implicit:
        return {side: [*prompt, *turn] for side, turn in sides.items()}
    return {"prompt": prompt, **sides}


@pytest.mark.parametrize("form", ["plain", "conversational", "implicit plain", "implicit conversational"])
def test_a_file_of_2000_rows_made_for_trl_trains_unchanged(form: str, tokenizer: Any, tmp_path: Path) -> None:
    rows = plain_rows(2000)
    if form == "conversational":
        rows = [conversational(row) for row in rows]
    elif form == "implicit conversational":
        rows = [conversational(row, implicit=True) for row in rows]
    elif form == "implicit plain":
        rows = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]
    preferences = load_preferences(write_jsonl(tmp_path / "pairs.jsonl", rows))
    assert len(preferences) == 2000
    trainer = make_trainer(build_model("llama"), tmp_path / "run", tokenizer, preferences)
    assert trainer.tokenization["train"]["pairs"] == 2000
    trainer.train()
    assert [line["step"] for line in train_logs(trainer)] == [1, 2]
    pair = trainer.train_dataset[17]
    if "conversational" in form:
        text = tokenizer.decode(pair.prompt_ids)
        assert text.startswith("<|system|>be kind<|end|>\n<|user|>q17")
        assert text.endswith("<|end|>\n<|assistant|>")
    assert pair.chosen_ids[-1] == pair.rejected_ids[-1] == tokenizer.eos_token_id


def test_broken_rows_are_named_before_anything_is_trained(tokenizer: Any, tmp_path: Path) -> None:

    rows = plain_rows(3)
    rows[1]["chosen"] = ""
    with pytest.raises(BadPreferences, match=r"train_dataset:2: chosen: "):
        make_trainer(build_model("llama"), tmp_path, tokenizer, rows)
    for nothing in ([], {"a": rows, "b": rows}):
        with pytest.raises(ValueError, match="train_dataset"):
            make_trainer(build_model("llama"), tmp_path, tokenizer, nothing)
