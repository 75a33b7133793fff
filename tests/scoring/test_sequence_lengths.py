"""Rotary embeddings that depend on the longest row of a batch: where they do, and that nothing is computed there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers as hf
from typer.testing import CliRunner

from helpers.ppo_cases import make_ppo
from helpers.tiny_models import build_model
from helpers.training_cases import make_trainer, train_logs
from tdpo.batches import TokenizedPair
from tdpo.cli.app import app
from tdpo.evaluation.held_out_pairs import evaluate_pairs
from tdpo.losses import dpo_loss
from tdpo.models import independent_length, reference_for
from tdpo.scoring.policy_statistics import PolicyStatistics

SMALL = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
}  # fmt: skip
LIMIT = 24
LONG_ROWS = [{"prompt": f"q{i} the cat", "chosen": " yes" * 20, "rejected": " no"} for i in range(4)]


def longrope(**changes: Any) -> dict[str, Any]:
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    return {
        "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": LIMIT, **factors, **changes,
    }  # fmt: skip


def phi3(rope: dict[str, Any] | None = None) -> Any:
    return hf.Phi3Config(
        **SMALL, max_position_embeddings=256, original_max_position_embeddings=LIMIT,
        rope_parameters=longrope() if rope is None else rope,
    )  # fmt: skip


def dynamic() -> Any:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    return hf.LlamaConfig(**SMALL, max_position_embeddings=LIMIT, rope_parameters=rope)


def built(config: Any) -> Any:
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model.eval()


def pair(prompt: int, chosen: int = 4, rejected: int = 3) -> TokenizedPair:
    return TokenizedPair.of(*([5 + i % 300 for i in range(n)] for n in (prompt, chosen, rejected)))


@torch.no_grad()
@pytest.mark.parametrize("config", [phi3, dynamic])
def test_a_row_knows_its_neighbour_beyond_the_limit_and_not_up_to_it(config: Any) -> None:
    """Measured: a row of 8 tokens alone, and beside a longer one."""
    model = built(config())
    assert independent_length(model.config) == LIMIT

    def moved_by(neighbour: int) -> float:
        ids = torch.zeros(2, neighbour, dtype=torch.long)
        ids[0, :8], ids[1] = torch.arange(9, 17), torch.arange(20, 20 + neighbour)
        mask = (ids > 0).long()
        alone = model(input_ids=ids[:1, :8], attention_mask=mask[:1, :8]).logits[0]
        beside = model(input_ids=ids, attention_mask=mask).logits[0, :8]
        return float((beside - alone).abs().max() / alone.abs().max())

    assert moved_by(LIMIT) < 1e-5
    assert moved_by(LIMIT + 1) > 1e-4


def test_the_limit_is_read_off_every_form_of_a_configuration() -> None:
    assert independent_length(build_model("llama").config) is None
    assert independent_length(build_model("gpt2").config) is None
    assert independent_length(phi3(longrope(long_factor=[1.0] * 4))) is None, "both factors are one"
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": LIMIT}
    assert independent_length(hf.LlamaConfig(**SMALL, rope_parameters=yarn)) is None, "the same at every length"

    class Old:
        """A configuration of code that comes with a model, as they were written before."""

        max_position_embeddings = 4096
        rope_scaling: ClassVar = {"type": "su", "short_factor": [1.0], "long_factor": [2.0]}
        original_max_position_embeddings = 512

        def get_text_config(self) -> Any:
            return self

    assert independent_length(Old()) == 512
    by_layer = {"full_attention": longrope(), "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    config = hf.LlamaConfig(**SMALL)
    config.rope_parameters = by_layer
    assert independent_length(config) == LIMIT


def test_training_takes_short_pairs_and_refuses_long_ones(tokenizer: Any, tmp_path: Path) -> None:
    short = [pair(9), pair(LIMIT - 4)]
    trainer = make_trainer(built(phi3()), tmp_path, tokenizer, short, max_steps=1, reference="cache")
    trainer.train()
    assert train_logs(trainer)[0]["chosen_forward_kl"] == pytest.approx(0.0, abs=1e-6)
    message = rf"memory:0 has {LIMIT + 1} tokens, and beyond {LIMIT} .*longest row of a batch.*max_length .* to {LIMIT}"
    with pytest.raises(ValueError, match=message):
        trainer.evaluate([pair(LIMIT - 3)])
    for reference in ("cache", "model"):
        with pytest.raises(ValueError, match=message):
            make_trainer(built(phi3()), tmp_path, tokenizer, [pair(LIMIT - 3)], reference=reference)
    with pytest.raises(ValueError, match=message):  # the policy is another, and its reference is not
        make_trainer(build_model("llama"), tmp_path, tokenizer, [pair(LIMIT - 3)], ref_model=built(phi3()))


def test_a_length_limit_makes_rows_fit(tokenizer: Any, tmp_path: Path) -> None:
    make_trainer(built(phi3()), tmp_path, tokenizer, LONG_ROWS, max_length=LIMIT)
    with pytest.raises(ValueError, match=r"train_dataset:\d+ has \d+ tokens, and beyond 24"):
        make_trainer(built(phi3()), tmp_path, tokenizer, LONG_ROWS)


def test_evaluation_and_ppo_refuse_them_too(tokenizer: Any, tmp_path: Path) -> None:
    model = built(phi3())
    statistics = PolicyStatistics.of(model, reference_for(model, built(phi3())))
    with pytest.raises(ValueError, match="longest row of a batch"):
        evaluate_pairs(
            model, statistics, lambda scores: dpo_loss(scores, beta=0.1), [pair(30)], pad_token_id=0, batch_size=2
        )
    ask: list[Any] = [{"prompt": "the cat"}]
    reward = lambda completions, **_: [0.0] * len(completions)  # noqa: E731
    with pytest.raises(ValueError, match=r"prompt 0 .* with max_new_tokens=40 has \d+ tokens, and beyond 24"):
        make_ppo(model, tmp_path, tokenizer, reward, ask, max_new_tokens=40)
    with pytest.raises(ValueError, match=r"prompt 0 .* with max_new_tokens=40 has \d+ tokens, and beyond 24"):
        make_ppo(build_model("llama"), tmp_path, tokenizer, reward, ask, max_new_tokens=40, ref_model=model)


@pytest.mark.parametrize("kind", ["preferences", "ppo"])
def test_doctor_asks_what_training_asks(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    folder, rows, recipe = tmp_path / "model", tmp_path / "rows.jsonl", tmp_path / "recipe.yaml"
    built(phi3()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows.write_text("".join(json.dumps(row) + "\n" for row in LONG_ROWS), encoding="utf-8")
    if kind == "preferences":
        text, shorter = (
            f"data: {{train: '{rows}'}}\ntraining: {{batch_size: 2, max_steps: 1}}\n",
            f"data.max_length={LIMIT}",
        )
    else:
        (tmp_path / "rewards.py").write_text("def none(completions, **_):\n    return [0.0] * len(completions)\n")
        text = (
            f"prompts: {{train: '{rows}'}}\nrewards: [{{function: '{tmp_path}/rewards.py:none'}}]\n"
            "ppo: {iterations: 1, minibatch_size: 4}\n"
            "rollouts: {completions: 4, samples_per_prompt: 2, max_new_tokens: 23}\n"
        )
        shorter = f"prompts.train={tmp_path}/short.jsonl"
        (tmp_path / "short.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    recipe.write_text(f"run_dir: '{tmp_path}/run'\nmodel: {{name: '{folder}'}}\n{text}", encoding="utf-8")
    done = CliRunner().invoke(app, ["doctor", str(recipe)])
    assert done.exit_code == 1 and "longest row of a batch" in " ".join(done.output.split()), done.output
    done = CliRunner().invoke(app, ["doctor", str(recipe), shorter])
    assert done.exit_code == 0, done.output
