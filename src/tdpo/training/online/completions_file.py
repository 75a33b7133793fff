"""`completions.jsonl`: a few responses of the iterations, for people to read."""

from __future__ import annotations

from pathlib import Path

from ...records.json_files import append_jsonl, rewrite_log
from .rewarded_responses import RewardedResponses

SHOWN = 4  # responses of an iteration


class CompletionsFile:
    """The file of one run. It is written by one process (`writes`), after `every` so many iterations; None is never."""

    def __init__(self, folder: str, every: int | None, writes: bool) -> None:
        self.path = Path(folder) / "completions.jsonl"
        self.every, self.writes = every, writes

    def add(self, sampled: RewardedResponses, iteration: int, step: int) -> None:
        """Append some of an iteration's responses with their rewards. The iteration begins after `step` updates."""
        if not self.writes or self.every is None or iteration % self.every:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for i in range(0, len(sampled.responses), max(len(sampled.responses) // SHOWN, 1)):
            response = sampled.responses[i]
            line = {
                "iteration": iteration, "step": step, "prompt": sampled.prompts[i].prompt, "text": response.text,
                "reward": None if sampled.rewards is None else float(sampled.rewards[i]), "finished": response.finished,
            }  # fmt: skip
            append_jsonl(self.path, line)

    def forget_from(self, iteration: int) -> None:
        """Delete the lines of this iteration and of later ones, which a resumed run writes again."""
        if self.writes and self.path.exists():
            rewrite_log(self.path, lambda line: line.get("iteration", 0) < iteration)
