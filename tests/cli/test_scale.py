"""`tdpo scale`: an adapter of a trainer's folder at another KL, as an evaluation then measures it."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from safetensors.torch import load_file

from helpers.training_cases import lora, make_trainer, plain_rows
from tdpo.config import load_recipe
from tdpo.evaluation.meeting_target import Meeting
from tdpo.evaluation.scaling import Scaled, scale_by, scale_run
from tdpo.evaluation.trained_model import TrainedModel
from tdpo.models.adapter_scaling import save_scaled_adapter
from tdpo.runs import RunDirectory

Call = Callable[..., Result]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path], tokenizer: Any) -> Path:
    """What a trainer leaves whose adapter has moved."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    trainer = make_trainer(
        str(tiny_folder("llama")), folder, tokenizer, peft_config=lora(), max_steps=3, learning_rate=1e-2
    )
    trainer.train()
    trainer.save_model(folder / "model")
    return folder


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Prompts to answer: those of held-out rows."""
    rows = tmp_path / "held_out.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in plain_rows(6)))
    return [f"data.eval={rows}", "evaluation.max_prompts=6", "evaluation.max_new_tokens=8"]


def test_the_scaled_adapter_has_the_kl_that_was_asked_for(call: Call, trained: Path, flags: list[str]) -> None:
    more = [*flags, "evaluation.samples_per_prompt=4"]
    evaluated = call("evaluate", str(trained), *more)
    assert evaluated.exit_code == 0, evaluated.output
    before = json.loads((trained / "evaluation.json").read_text())["generations"]["trained"]["reverse_kl"]
    scaled = call("scale", str(trained), "scaled", "--kl", f"{before / 2:.6f}", *more)
    assert scaled.exit_code == 0, scaled.output
    assert (
        f"factor 1.000: reverse KL {before:.3f} nats" in scaled.output and "24 responses to 6 prompts" in scaled.output
    )
    assert call("evaluate", "scaled", "--out", "judged", *more).exit_code == 0
    after = json.loads(Path("judged/evaluation.json").read_text())["generations"]["trained"]["reverse_kl"]
    found = re.findall(r"reverse KL ([\d.]+) nats", scaled.output)
    nearest = min((float(kl) for kl in found), key=lambda kl: abs(math.log(kl / before * 2)))
    assert after == pytest.approx(nearest, rel=1e-3) and after == pytest.approx(before / 2, rel=0.1)


def test_a_factor_can_be_given(call: Call, trained: Path) -> None:
    assert call("scale", str(trained), "half", "--factor", "0.5").exit_code == 0
    whole, half = (load_file(folder / "adapter_model.safetensors") for folder in (trained / "model", Path("half")))
    for name, weight in whole.items():
        assert half[name].equal(weight * 0.5 if "lora_B" in name else weight), name


def test_a_scaled_checkpoint_is_a_model_whose_card_says_what_it_is(trained: Path, tmp_path: Path) -> None:
    """What training would go on from belongs to the adapter as it was, and so do the numbers of the card."""
    checkpoint, scaled = tmp_path / "checkpoint-3", tmp_path / "scaled"
    shutil.copytree(trained / "model", checkpoint)
    for name in ("optimizer.pt", "COMPLETE", "trainer_state.json", "base_quantization.json"):
        (checkpoint / name).write_text("{}")
    save_scaled_adapter(checkpoint, scaled, 0.25)
    there = {path.name for path in scaled.iterdir()}
    assert {"adapter_config.json", "tokenizer.json", "trainer.json", "base_quantization.json"} <= there
    assert there & {"optimizer.pt", "COMPLETE", "trainer_state.json", "training_args.bin"} == set()
    before, after = ((folder / "README.md").read_text() for folder in (checkpoint, scaled))
    title, _, rest = before.partition("\n\n")
    assert after.startswith(f"{title}\n\nScaled by tdpo: what this adapter adds to its base was multiplied by 0.25")
    assert after.endswith(rest) and "0.25" not in before


def test_an_adapter_that_took_something_from_its_base_is_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model/adapter_config.json").read_text())
    (tmp_path / "model/adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": "pissa_niter_4"}))
    with pytest.raises(ValueError, match=r"more than plain LoRA .*pissa_niter_4, which changes the base"):
        scale_by(tmp_path / "model", tmp_path / "out", 0.5)


def test_models_are_found_where_they_were_when_the_run_began(trained: Path, tmp_path: Path) -> None:
    run, folder = RunDirectory(tmp_path / "run"), trained / "model"
    run.path.mkdir()
    run.write_json("environment.json", {"model_folders": {"model.name": str(tmp_path / "gone")}})
    recipe = load_recipe({"run_dir": str(run.path), "model": {"name": "gone"}, "data": {"train": "rows.jsonl"}})
    with pytest.raises(FileNotFoundError, match=r"model\.name gone was the folder"):
        scale_run(run, recipe, TrainedModel(folder, None, {}), tmp_path / "out", target=1.0, direction="reverse")


def test_a_reference_that_is_no_factor_away_is_pointed_out(
    call: Call, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tdpo.cli._evaluated import Judging

    recipe = load_recipe({"run_dir": "run", "data": {"train": "rows.jsonl"}})
    model = TrainedModel(trained / "model", "a/teacher", {"name": "mine"})
    judging = Judging(RunDirectory("run"), recipe, model, "mine")
    monkeypatch.setattr("tdpo.cli._evaluated.evaluation_for", lambda *_: judging)
    meeting = Meeting(1.0, 0.5, 1.0, [(1.0, 4.0), (0.5, 1.0)])
    monkeypatch.setattr("tdpo.evaluation.scaling.scale_run", lambda *_, **__: Scaled(meeting, 6, 24))
    said = " ".join(call("scale", str(trained), "new", "--kl", "1").output.split())
    assert "the KL is to a/teacher, and a factor leads to the adapter's base" in said, said


def test_what_cannot_be_done_is_said_before_anything_is_written(
    call: Call, trained: Path, flags: list[str], tiny_folder: Callable[[str], Path]
) -> None:
    run = str(trained)
    for arguments, reason in (
        ([run, "new"], "give one of --kl NATS and --factor NUMBER"),
        ([run, "new", "--kl", "2", "--factor", "2"], "give one of"),
        ([run, "new", "--kl", "-1"], "--kl must be above 0"),
        ([run, run, "--kl", "1"], "exists; name a new folder"),
        ([run, "new", "--factor", "2", flags[0]], "has no effect with --factor"),
        ([run, "new", "--factor", "2", "--direction", "forward"], "has no effect with --factor"),
        ([run, "new", "--kl", "1"], "nothing"),
        ([run, "new", "--kl", "1", "sampling.engine=vllm"], "measured with the built-in sampler"),
    ):
        said = call("scale", *arguments)
        assert said.exit_code in (1, 2) and reason in said.output and "Traceback" not in said.output, said.output
    whole = call(
        "scale",
        str(tiny_folder("llama")),
        "new",
        "--factor",
        "0.5",
    )
    assert whole.exit_code in (1, 2) and "is a whole model and no adapter" in whole.output, whole.output
    assert not Path("new").exists()
