"""`tdpo pairs` and `tdpo evaluate` with a server: what it was asked, and what is written of who drew the responses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from helpers.run_cases import write_inputs, write_rows
from helpers.vllm_stand_in import VLLM
from tdpo.records.json_files import read_json, read_jsonl
from tdpo.records.names import ADAPTERS_FOLDER
from tdpo.sampling.sampler import encode_prompts

Call = Callable[..., Result]
ENGINE = "vLLM 0.0.stand-in, model /models/tiny"

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def recipe(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> str:
    """A recipe of two updates on a tiny model, with four prompts to train on and two held out."""
    write_inputs(tmp_path, tiny_folder("llama"))
    write_rows(tmp_path / "held_out.jsonl", [{"prompt": "say five"}, {"prompt": "say six"}])
    content = {
        "run_dir": "run",
        "model": {"name": "base", "lora": {"rank": 2}},
        "data": {"train": "pairs.jsonl"},
        "environment": {
            "prompts": "prompts.jsonl", "held_out": "held_out.jsonl", "reward": "mine.py:letters", "max_new_tokens": 5,
        },
        "training": {"batch_size": 6, "max_steps": 2, "learning_rate": 0.02, "scheduler": "constant"},
        "sampling": {"samples_per_prompt": 4},
        "evaluation": {"samples_per_prompt": 2},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(content), encoding="utf-8")
    return "recipe.yaml"


def drawn(vllm: VLLM) -> list[dict[str, Any]]:
    """What the server was asked for by chance: what compares models is greedy."""
    return [body for body in vllm.asked if body["temperature"] > 0]


def test_pairs_are_drawn_by_the_server(call: Call, recipe: str, vllm: VLLM, tokenizer: Any) -> None:
    server = ("sampling.engine=vllm", f"sampling.url={vllm.url}")
    done = call("pairs", recipe, "--out", "o.jsonl", *server)
    assert done.exit_code == 0 and "pairs from 16 responses to 4 prompts" in done.output, done.output
    asked = drawn(vllm)
    assert len(asked) == 16 == len({body["seed"] for body in asked})
    assert {(body["model"], body["max_tokens"]) for body in asked} == {("tiny", 5)}, "the base itself, and no adapter"
    assert sorted(body["prompt"][0] for body in asked) == sorted(
        4 * encode_prompts(tokenizer, [f"say {word}" for word in ("one", "two", "three", "four")])
    )
    assert read_json(Path("o.jsonl.meta.json"))["origin"]["engine"] == ENGINE
    # The stand-in draws by another rule than the built-in sampler: the texts can only be its own.
    ids = [vllm.complete(body)["choices"][0]["token_ids"] for body in asked]
    said = {tokenizer.decode(one, skip_special_tokens=True) for one in ids}
    rows = list(read_jsonl(Path("o.jsonl")))
    assert rows and {text(row[side]) for row in rows for side in ("chosen", "rejected")} <= said
    alone = call("pairs", recipe, "--out", "alone.jsonl")
    assert alone.exit_code == 0 and "engine" not in read_json(Path("alone.jsonl.meta.json"))["origin"], alone.output
    assert len(drawn(vllm)) == 16


def text(response: Any) -> str:
    return str(response if isinstance(response, str) else response[0]["content"])


def test_pairs_whose_server_goes_away_are_continued(call: Call, recipe: str, vllm: VLLM) -> None:
    """What had been drawn is not asked for again, and the file is that of a server that had stayed."""
    command = ("pairs", recipe, "sampling.engine=vllm", f"sampling.url={vllm.url}", "sampling.batch_size=4", "--out")
    assert call(*command, "whole.jsonl").exit_code == 0
    before = len(vllm.asked)
    vllm.broken = {before + (before - 16) + 8 + n: "gone" for n in range(40)}  # after two prompts of the four
    stopped = call(*command, "o.jsonl")
    assert stopped.exit_code == 1 and "give the command again" in stopped.output, stopped.output
    assert not Path("o.jsonl").exists()
    vllm.broken, so_far = {}, len(drawn(vllm))
    done = call(*command, "o.jsonl")
    assert done.exit_code == 0, done.output
    assert len(drawn(vllm)) - so_far == 8
    assert Path("o.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_an_evaluation_asks_the_server_for_both_models(call: Call, recipe: str, vllm: VLLM, tokenizer: Any) -> None:
    trained = call("train", recipe)
    assert trained.exit_code == 0 and not vllm.asked, trained.output
    done = call("evaluate", "run", "sampling.engine=vllm", f"sampling.url={vllm.url}")
    assert done.exit_code == 0, done.output
    asked, (_, adapter) = drawn(vllm), vllm.loads
    assert sorted(body["model"] for body in asked) == sorted([*["tiny"] * 4, *[adapter] * 4])
    held_out = encode_prompts(tokenizer, ["say five", "say six"])
    for model in ("tiny", adapter):
        assert sorted(body["prompt"][0] for body in asked if body["model"] == model) == sorted(2 * held_out)
    written = read_json(Path("run/evaluation.json"))
    assert written["settings"]["engine"] == ENGINE and written["generations"]["trained"]["reverse_kl"] > 0
    assert not vllm.adapters and not any(Path("run", ADAPTERS_FOLDER).iterdir()), "it was taken back"
