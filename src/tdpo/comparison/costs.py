"""What a cell cost: responses scored, updates, tokens. Seconds are kept apart, since they differ between equal runs."""

from __future__ import annotations

from ..config import Study
from ..methods import ARMS
from ..records.json_files import read_json
from ..records.names import DATA_FILE
from ..records.study_tables import CellKey
from ..runs import RunDirectory
from .cells import StudyFiles, task_of


def costs(study: Study, files: StudyFiles, cell: CellKey, run: RunDirectory) -> dict[str, float | None]:
    """`scored_completions`, `updates`, `generated_tokens` (to learn from) and `trained_tokens` (responses × passes)."""
    kind = ARMS[cell.arm].kind
    if kind in ("reference", "baseline"):
        return {}
    updates = float(run.status()["step"])
    if kind in ("ppo", "online"):
        # Logged once an iteration: the mean length of its responses, in tokens.
        lengths = [line["length_mean"] for line in run.metrics() if "length_mean" in line and line["split"] == "train"]
        generated = sum(lengths) * study.rollouts.completions
        # A prompt's responses all enter PPO's updates, and two of them a pair.
        share = 1.0 if kind == "ppo" else 2.0 / study.rollouts.samples_per_prompt
        passes = float(study.ppo.epochs if kind == "ppo" else study.online.passes)
        return _row(study.budget, updates, generated, generated * share * passes)
    described = run.read_json(DATA_FILE)["train"]
    a_pass = 2 * described["pairs"] * described["mean_response_tokens"]
    passes = updates * study.training.batch_size / described["pairs"]
    generated, scored = None, None
    if task_of(study, cell.task).environment is not None:
        manifest = files.pairs(cell.task, cell.seed)
        summary = read_json(manifest.with_name(f"{manifest.name}.meta.json"))["summary"]
        generated, scored = summary["samples"] * summary["tokens_mean"], study.budget
    return _row(scored, updates, generated, a_pass * passes)


def _row(scored: int | None, updates: float, generated: float | None, trained: float | None) -> dict[str, float | None]:
    return {
        "scored_completions": None if scored is None else float(scored),
        "updates": updates,
        "generated_tokens": generated,
        "trained_tokens": trained,
    }
