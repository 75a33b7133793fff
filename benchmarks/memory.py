"""The estimate of memory that `tdpo doctor` prints, against the measured peak of the same run.

    python benchmarks/memory.py                     # all cases, each in a process of its own
    python benchmarks/memory.py --cases pairs-lora ppo-lora

Measured is the highest resident memory of a short training over that of the process before it loads the model, on the
CPU. `ratio` is the estimate divided by it: below 1 the run needs more than was said.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _harness import MIB, RESULTS, PeakMemory, child_environment, hardware, number, print_table, versions

TEXT = "the ship came home before the storm and nobody had seen the harbour so quiet in all those years "
WORDS = TEXT.split()
TINY = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
# A row of some 290 tokens is enough for a model of 135 M weights: its activations are larger than its weights.
PAIRS: dict[str, Any] = {"training": {"max_steps": 2, "batch_size": 1, "save_steps": None}}
PPO: dict[str, Any] = {
    "environment": "sentiment",
    "rollouts": {"completions": 4, "max_new_tokens": 16},
    "ppo": {"iterations": 1, "minibatch_size": None, "epochs": 1, "save_every": None},
}
CASES: dict[str, dict[str, Any]] = {
    "pairs-lora": {**PAIRS},
    "pairs-full": {**PAIRS, "model": {"lora": None}},
    "pairs-full-checkpointing": {
        **PAIRS,
        "model": {"lora": None},
        "training": {**PAIRS["training"], "gradient_checkpointing": True},
    },
    "ppo-lora": {**PPO},
    "ppo-full": {**PPO, "model": {"lora": None}},
    "tiny-pairs-full": {"model": {"name": "tiny", "lora": None}, "training": {**PAIRS["training"], "batch_size": 16}},
    "tiny-ppo-full": {**PPO, "model": {"name": "tiny", "lora": None}},
}


def text(start: int, words: int) -> str:
    return " ".join(WORDS[(start * 7 + i) % len(WORDS)] for i in range(words))


def write_recipe(case: str, folder: Path) -> Path:
    """A recipe, its rows of about 100 tokens for prompt and each response, and the tiny model where it is wanted."""
    recipe = {**CASES[case], "run_dir": str(folder / "run")}
    if "ppo" not in recipe:
        rows = [{"prompt": text(i, 90), "chosen": text(i + 1, 95), "rejected": text(i + 2, 95)} for i in range(16)]
        rows = rows[: 2 * recipe["training"]["batch_size"]]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe["data"] = {"train": str(folder / "rows.jsonl")}
    if recipe.get("model", {}).get("name") == "tiny":
        recipe["model"] = {**recipe["model"], "name": str(folder / "tiny")}
        save_tiny(folder / "tiny")
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


def save_tiny(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from tdpo.models import configuration_of, load_tokenizer

    config = configuration_of("smollm2-135m")
    for name, value in TINY.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    load_tokenizer("smollm2-135m").save_pretrained(folder)


def largest_batch(recipe: Any) -> Any:
    from tdpo.config import Recipe
    from tdpo.models import load_tokenizer, model_facts
    from tdpo.recipe_data.pairs import read_data, tokenize_rows
    from tdpo.recipe_data.prompts import read_recipe_prompts
    from tdpo.sampling.sampler import encode_prompts
    from tdpo.workflows.memory_batches import batch_of_pairs, batch_of_prompts
    from tdpo.workflows.trainer_arguments import new_tokens_of

    tokenizer = load_tokenizer(recipe.model.name)
    if isinstance(recipe, Recipe):
        rows = read_data(recipe).train
        return batch_of_pairs(
            recipe, tokenize_rows(rows, recipe, tokenizer, model_facts(recipe.model.name, tokenizer)).pairs
        )
    train, _, _ = read_recipe_prompts(recipe)
    encoded = encode_prompts(tokenizer, [prompt.rendered_from for prompt in train])
    return batch_of_prompts(recipe, max(map(len, encoded)), new_tokens_of(recipe))


def measure(case: str, folder: Path) -> dict[str, Any]:
    """Estimate, then train a little; in MiB."""
    from tdpo.config import Recipe, load_recipe
    from tdpo.runs import RunDirectory
    from tdpo.workflows.memory_room import ModelsOfRun, memory_of
    from tdpo.workflows.ppo import train_ppo
    from tdpo.workflows.train import train

    recipe = load_recipe(write_recipe(case, folder), ())
    models, batch = ModelsOfRun.of(recipe), largest_batch(recipe)
    assert models is not None
    room = memory_of(recipe, models, batch)
    del models
    peak = PeakMemory()
    with RunDirectory.training(recipe) as run:
        (train if isinstance(recipe, Recipe) else train_ppo)(recipe, run)  # type: ignore[arg-type]
    parts = {name: value / MIB for name, value in vars(room).items() if value is not None}
    return {
        "estimate": room.peak / MIB,
        "measured": peak.read(),
        "parts": parts,
        "rows": batch.rows,
        "tokens": batch.tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.json")
    settings = parser.parse_args()
    if settings.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(settings.one, Path(folder))))
        return
    found = {}
    for case in settings.cases:
        command = [sys.executable, __file__, "--one", case]
        done = subprocess.run(command, env=child_environment(), stdout=subprocess.PIPE, text=True, check=True)
        found[case] = json.loads(done.stdout.splitlines()[-1])
        print(case, found[case], file=sys.stderr, flush=True)
    body = {"command": " ".join(sys.argv), "versions": versions(), "hardware": hardware(), "cases": found}
    settings.out.write_text(json.dumps(body, indent=1) + "\n")
    rows = [
        [case, number(run["estimate"]), number(run["measured"]), number(run["estimate"] / run["measured"], 2)]
        for case, run in found.items()
    ]
    print_table("Memory at the peak, MiB", ["case", "estimate", "measured", "ratio"], rows)


if __name__ == "__main__":
    main()
