"""The estimate of memory that `tdpo doctor` prints, against the measured peak of the same run.

    python benchmarks/memory.py                     # all cases, each in a process of its own
    python benchmarks/memory.py --cases pairs-lora ppo-lora

Measured are the bytes that torch's allocator has given out at once in a short run of the recipe on the CPU, from
the loaded model to its saving, as torch's profiler reports each of them. That is what `torch.cuda.max_memory_allocated`
counts on a GPU; memory of libraries is not in it, nor is the peak of loading. `ratio` is the estimate divided by it:
below 1 the run needs more than was said.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest.mock import patch

from _harness import MIB, RESULTS, child_environment, hardware, number, print_table, versions

COMMAND = "python benchmarks/memory.py"
LOADING = "a model is loaded"
ONE_THREAD_LOADS = {"HF_DEACTIVATE_ASYNC_LOAD": "1"}  # what other threads allocate, the profiler does not see
TEXT = "the ship came home before the storm and nobody had seen the harbour so quiet in all those years "
WORDS = TEXT.split()
# Untrained models with the bundled one's tokenizer. `wide` has the vocabulary of Qwen3, which is most of its weights.
TINY = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
WIDE = {**TINY, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "head_dim": 32,
        "vocab_size": 151936, "tie_word_embeddings": False}  # fmt: skip
# A row of some 290 tokens is enough for a model of 135 M weights: its activations are about as large as its weights.
STEPS = {"max_steps": 2, "batch_size": 1, "save_steps": None}
SENTIMENT = {"name": "sentiment", "max_prompts": 16, "max_held_out": 16}
PPO: dict[str, Any] = {
    "environment": SENTIMENT,
    "rollouts": {"completions": 4, "max_new_tokens": 16},
    "ppo": {"iterations": 1, "minibatch_size": None, "epochs": 1, "save_every": None},
}
ONLINE: dict[str, Any] = {
    "environment": SENTIMENT,
    "rollouts": {"completions": 8, "max_new_tokens": 16},
    "online": {"iterations": 2, "save_every": None},
}
FULL = {"lora": None}


def pairs(model: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    return {"model": model or {}, "training": {**STEPS, **training}}


CASES: dict[str, dict[str, Any]] = {
    "pairs-lora": pairs(),
    "pairs-lora-live": pairs(reference="model"),
    "pairs-lora-two": pairs(batch_size=2),
    "pairs-lora-long": {**pairs(), "words": 220},
    "pairs-lora-checkpointing": {**pairs(batch_size=2, gradient_checkpointing=True), "words": 220},
    "pairs-lora-bfloat16": pairs({"dtype": "bfloat16"}),
    "pairs-lora-4bit": pairs({"quantization": {"bits": 4}}),
    "pairs-full": pairs(FULL),
    "pairs-full-live": pairs(FULL, reference="model"),
    "pairs-full-checkpointing": {**pairs(FULL, batch_size=2, gradient_checkpointing=True), "words": 220},
    "pairs-full-mixed": pairs(FULL, precision="bfloat16-mixed"),
    "tiny-pairs-full": pairs({"name": "tiny", **FULL}, batch_size=16),
    "tiny-pairs-sgd": pairs({"name": "tiny", **FULL}, optimizer="sgd"),
    "tiny-pairs-parts": pairs({"name": "tiny", **FULL}, batch_size=4, micro_batch_size=1),
    "wide-pairs-full": pairs({"name": "wide", **FULL}, batch_size=4),
    "wide-pairs-lora": pairs({"name": "wide"}, batch_size=8),
    "ppo-lora": PPO,
    "ppo-full": {**PPO, "model": FULL},
    "tiny-ppo-critic": {**PPO, "model": {"name": "tiny", **FULL}, "ppo": {**PPO["ppo"], "value_model": "tiny"}},
    "wide-ppo-full": {**PPO, "model": {"name": "wide", **FULL}},
    "online-lora": ONLINE,
    "wide-online-full": {**ONLINE, "model": {"name": "wide", **FULL}},
}


def text(start: int, words: int) -> str:
    return " ".join(WORDS[(start * 7 + i) % len(WORDS)] for i in range(words))


def write_recipe(case: str, folder: Path) -> Path:
    """A recipe, its rows (of about 100 tokens for prompt and each response), and the models that it names."""
    recipe = {**CASES[case], "run_dir": str(folder / "run")}
    words = recipe.pop("words", 95)
    if "training" in recipe:
        starts = range(min(16, 2 * recipe["training"]["batch_size"]))
        keys = ("prompt", "chosen", "rejected")
        rows = [{key: text(start + i, words) for i, key in enumerate(keys)} for start in starts]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe["data"] = {"train": str(folder / "rows.jsonl")}
    for section, key in (("model", "name"), ("ppo", "value_model")):
        kind = recipe.get(section, {}).get(key)
        if kind is not None:
            recipe[section] = {**recipe[section], key: str(folder / kind)}
            save_untrained(kind, folder / kind)
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


def save_untrained(kind: str, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    from tdpo.models import configuration_of, load_tokenizer

    base = configuration_of("smollm2-135m")
    config = base if kind == "tiny" else Qwen3Config(bos_token_id=base.bos_token_id, eos_token_id=base.eos_token_id)
    for name, value in (TINY if kind == "tiny" else WIDE).items():
        setattr(config, name, value)
    if kind == "wide":
        config.layer_types = config.layer_types[: config.num_hidden_layers]
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
    train, held_out, _ = read_recipe_prompts(recipe)
    encoded = encode_prompts(tokenizer, [prompt.rendered_from for prompt in (*train, *held_out)])
    return batch_of_prompts(recipe, max(map(len, encoded)), new_tokens_of(recipe), held_out=len(held_out))


def allocated_at_once(run: Callable[[], object]) -> int:
    """The most bytes that torch's allocator has given out at a time in `run`, once its models are loaded.

    While a model loads in another dtype than its file's, the file is mapped, and torch counts all of it.
    """
    from torch.autograd.profiler import profile, record_function
    from transformers import PreTrainedModel

    load = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def noted(*arguments: Any, **options: Any) -> Any:
        with record_function(LOADING):
            return load(*arguments, **options)

    with patch.object(PreTrainedModel, "from_pretrained", classmethod(noted)), profile(profile_memory=True) as recorded:
        run()
    result = recorded.kineto_results
    assert result is not None
    events = result.events()
    loaded = max(e.start_ns() + e.duration_ns() for e in events if e.name() == LOADING)
    sizes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    totals = accumulate(size for _, size in sizes)
    return max(total for (time, _), total in zip(sizes, totals, strict=True) if time > loaded)


def measure(case: str, folder: Path) -> dict[str, Any]:
    """Estimate, then train a little; in MiB."""
    from tdpo.config import OnlineRecipe, Recipe, load_recipe
    from tdpo.runs import RunDirectory
    from tdpo.workflows.memory_room import memory_of
    from tdpo.workflows.models_of_run import ModelsOfRun
    from tdpo.workflows.online import train_online
    from tdpo.workflows.ppo import train_ppo
    from tdpo.workflows.train import train

    recipe = load_recipe(write_recipe(case, folder), ())
    models, batch = ModelsOfRun.of(recipe), largest_batch(recipe)
    assert models is not None
    room = memory_of(recipe, models, batch)
    del models
    run_recipe: Any = (
        train if isinstance(recipe, Recipe) else train_online if isinstance(recipe, OnlineRecipe) else train_ppo
    )
    with RunDirectory.training(recipe) as run:
        peak = allocated_at_once(lambda: run_recipe(recipe, run))
    return {
        "estimate": room.peak / MIB,
        "measured": peak / MIB,
        "moment": room.peak_moment,
        "parts": {name: value / MIB for name, value in vars(room).items() if value is not None},
        "rows": batch.rows,
        "tokens": batch.tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--more", action="store_true", help="add to the cases of the file, or measure these again")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.json")
    settings = parser.parse_args()
    if settings.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(settings.one, Path(folder))))
        return
    found = json.loads(settings.out.read_text())["cases"] if settings.more else {}
    environment = {**child_environment(), **ONE_THREAD_LOADS}
    for case in settings.cases:
        command = [sys.executable, __file__, "--one", case]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found[case] = json.loads(done.stdout.splitlines()[-1])
        print(case, found[case], file=sys.stderr, flush=True)
        body = {"command": COMMAND, "versions": versions(), "hardware": hardware(), "cases": found}
        settings.out.write_text(json.dumps(body, indent=1) + "\n")
    rows = [
        [case, number(run["estimate"]), number(run["measured"]), number(run["estimate"] / run["measured"], 2)]
        for case, run in found.items()
    ]
    print_table("Memory at the peak, MiB", ["case", "estimate", "measured", "ratio"], rows)


if __name__ == "__main__":
    main()
