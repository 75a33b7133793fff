"""`completions.jsonl`: a few responses of the iterations, for people to read."""

from __future__ import annotations

import logging
from pathlib import Path

from ...records.files import write_text
from ...records.json_files import append_jsonl, json_line, read_sound_lines
from .rollouts import RewardedResponses

logger = logging.getLogger(__name__)

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
                "reward": float(sampled.rewards[i]), "finished": response.finished,
            }  # fmt: skip
            append_jsonl(self.path, line)

    def forget_from(self, iteration: int) -> None:
        """Delete the lines of this iteration and of later ones, which a resumed run writes again."""
        if self.writes and self.path.exists():
            lines, broken = read_sound_lines(self.path)
            for sentence in broken:
                logger.warning("%s; the line is left out, those after it are kept", sentence)
            earlier = [line for line in lines if line.get("iteration", 0) < iteration]
            write_text(self.path, "".join(json_line(line) for line in earlier))
