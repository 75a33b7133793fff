"""Every command renders rows and prompts in one way: the doctor, training, pair sampling, PPO, evaluation, generate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from helpers.tiny_models import CHAT_TEMPLATE, build_model, build_tokenizer
from tdpo.batches import tokenize_pairs
from tdpo.cli.app import app
from tdpo.cli.generate import _from_file
from tdpo.config import load_recipe
from tdpo.environments import Environment, Prompt
from tdpo.evaluation.held_out_sources import prompts_of
from tdpo.preferences import Preferences, load_preferences
from tdpo.recipe_data.pairs import read_data
from tdpo.recipe_data.prompts import read_usable_prompts
from tdpo.sampling.pair_sampling import PairSettings, sample_pairs
from tdpo.sampling.sampler import SamplingSettings, encode_prompts
from tdpo.training import PPOConfig
from tdpo.training.online.rewarded_responses import sample_responses

TALKATIVE = "{% if tools %}{{ tools[0].function.name }}{% endif %}{{ mood }}" + CHAT_TEMPLATE
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + CHAT_TEMPLATE
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {}}}
COLUMNS = {"tools": [WEATHER], "chat_template_kwargs": {"mood": "calm"}}
ASKED = [{"role": "user", "content": "the cat"}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *ASKED]


def talkative() -> Any:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TALKATIVE
    return tokenizer


def prompts() -> list[Prompt]:
    return [Prompt("with", ASKED, COLUMNS), Prompt("without", ASKED)]


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answered(prompt: Any, *, number: int = 0, **more: Any) -> dict[str, Any]:
    chosen, rejected = ([{"role": "assistant", "content": f"{text} {number}"}] for text in ("yes", "no"))
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def test_pairs_are_trained_on_with_the_prompt_that_was_sampled_from(tmp_path: Path) -> None:
    tokenizer, out = talkative(), tmp_path / "pairs.jsonl"
    toy = Environment("toy", prompts(), [], lambda completions, **_: [len(text) for text in completions], "n", 6, "")
    settings = PairSettings(SamplingSettings(num_samples=6, max_new_tokens=6), pairs_per_prompt=1)
    sample_pairs(build_model("llama"), tokenizer, toy, out, settings)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [{name: row[name] for name in COLUMNS if name in row} for row in rows] == [COLUMNS, {}]
    trained = [pair.prompt_ids for pair in tokenize_pairs(load_preferences(out).rows, tokenizer, None).pairs]
    assert trained == encode_prompts(tokenizer, [prompt.rendered_from for prompt in prompts()])
    assert tokenizer.decode(trained[0]).startswith("weathercalm")


def test_ppo_samples_from_the_whole_prompt(tmp_path: Path) -> None:
    args = PPOConfig(
        output_dir=str(tmp_path), max_new_tokens=2, samples_per_prompt=1, use_cpu=True, merge_adapter=False
    )
    tokenizer = talkative()
    _, encoded, _ = sample_responses(build_model("llama"), tokenizer, prompts(), args, seed=0)
    assert encoded == encode_prompts(tokenizer, [prompt.rendered_from for prompt in prompts()])
    assert tokenizer.decode(encoded[0]).startswith("weathercalm")


def test_rows_that_differ_in_their_tools_have_different_prompts(tmp_path: Path) -> None:
    file = lines(tmp_path / "p.jsonl", *(answered(ASKED, number=i, **(COLUMNS if i % 2 else {})) for i in range(4)))
    rows = load_preferences(file)
    environment = prompts_of(Preferences(rows.rows, [], "p"))
    assert [dict(prompt.columns) for prompt in environment.held_out] == [{}, COLUMNS]
    recipe = lines(tmp_path / "r.yaml")
    recipe.write_text(f"run_dir: {tmp_path}/run\ndata: {{train: '{file}', eval_fraction: 0.5}}\n")
    data = read_data(load_recipe(recipe))
    assert data.eval is not None
    assert (len(data.train), len(data.eval)) == (2, 2), "they are held out apart"


def test_generate_gives_the_template_all_of_a_line(tmp_path: Path) -> None:
    [prompt] = _from_file(lines(tmp_path / "p.jsonl", {"prompt": ASKED, **COLUMNS}))
    assert encode_prompts(talkative(), [prompt]) == encode_prompts(talkative(), [prompts()[0].rendered_from])


# ---- a template that refuses ----


@pytest.fixture(scope="module")
def strict_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strict")
    build_model("llama").save_pretrained(folder)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = STRICT
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    return lambda *arguments: CliRunner().invoke(app, list(arguments), prog_name="tdpo")


def test_doctor_and_training_name_the_row_and_skip_it_where_asked(
    call: Callable[..., Result], strict_folder: Path, tmp_path: Path
) -> None:
    lines(tmp_path / "p.jsonl", *(answered(ASKED, number=i) for i in range(4)), answered(SYSTEM, number=4))
    (tmp_path / "r.yaml").write_text(
        f"run_dir: run\nmodel: {{name: '{strict_folder}', lora: null}}\ndata: {{train: p.jsonl}}\n"
        "training: {batch_size: 4, max_steps: 1, reference: model}\n"
    )
    for command in ("doctor", "train"):
        said = call(command, "r.yaml")
        text = " ".join(said.output.split())
        assert said.exit_code == (1 if command == "doctor" else 2), text
        assert "p.jsonl:5: prompt: is not rendered by the chat template" in text
        assert "no system turns" in text
        assert "unexpected" not in text
        skipped = call(command, "r.yaml", "data.on_bad_rows=skip", "run_dir=skipped")
        assert skipped.exit_code == 0, skipped.output
        assert "1 of 5 rows were skipped" in " ".join(skipped.output.split())
    described = json.loads((tmp_path / "skipped/data.json").read_text())["train"]
    assert (described["pairs"], len(described["refused"])) == (4, 1)


def test_ppo_names_the_prompt_and_skips_it_where_asked(
    call: Callable[..., Result], strict_folder: Path, tmp_path: Path
) -> None:
    lines(tmp_path / "p.jsonl", {"prompt": ASKED}, {"prompt": SYSTEM})
    (tmp_path / "rewards.py").write_text("def length(completions, **_):\n    return [len(c) for c in completions]\n")
    (tmp_path / "r.yaml").write_text(
        f"run_dir: run\nmodel: {{name: '{strict_folder}', lora: null}}\nprompts: {{train: p.jsonl}}\n"
        "rewards: [{function: rewards.py:length}]\nrollouts: {max_new_tokens: 4}\n"
        "ppo: {iterations: 1}\n"
    )
    said = call("doctor", "r.yaml")
    assert "prompt p.jsonl:2: the chat template refuses it: no system turns" in " ".join(said.output.split())
    assert said.exit_code == 1
    trained = call("ppo", "r.yaml")
    assert trained.exit_code == 2
    assert "prompt p.jsonl:2: the chat template refuses it" in " ".join(trained.output.split())
    recipe: Any = load_recipe(tmp_path / "r.yaml", ["prompts.on_bad_rows=skip"])
    from tdpo.models import load_tokenizer

    kept, _, described = read_usable_prompts(recipe, load_tokenizer(strict_folder))
    assert [prompt.id for prompt in kept] == ["p.jsonl:1"]
    assert (described["train"]["skipped"], described["train"]["prompts"]) == (1, 1)
