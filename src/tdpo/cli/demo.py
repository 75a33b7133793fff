"""`tdpo demo`: all commands one after another on the bundled model, with explanations."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import _demo_text as text
from ._console import duration, out, progress_in_stages, quiet_libraries, write
from ._demo_sizes import FULL, QUICK, SHORT, Size
from ._errors import CommandError
from ._options import Debug
from .cache import fetch_with_words

if TYPE_CHECKING:
    from ..config import AnyRecipe, Recipe
    from ..runs import RunDirectory

RECORD = "demo.json"
ON_PAIRS = {"TDPO2": "sentiment_tdpo2", "DPO": "sentiment_dpo"}
ON_REWARDS = {"PPO": "ppo_sentiment"}
TRAINING_SECTIONS = {"loss", "training", "kl", "rollouts", "ppo", "model", "seed"}  # of the recipe


def demo(
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Default: runs/demo, runs/demo-full or runs/demo-quick.",
            show_default=False,
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="The long one, whose numbers mean more: all prompts, and more updates."),
    ] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="All stages in a minute or two, too short for numbers that mean anything."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Show everything on the bundled model: pairs, training with TDPO2, DPO and PPO, evaluation, report.

    Needs no GPU. Where the model is not installed, it asks whether to fetch it (90 MB). It takes three to five
    minutes on two cores; with --full a quarter of an hour, or some 40 minutes where bfloat16 is not faster than
    float32, which is measured first. Interrupted, the same command continues.

    [bold]Examples[/bold]

        tdpo demo
        tdpo demo --full
        tdpo demo --out /tmp/demo
    """
    if full and quick:
        raise CommandError("--full is the long demo and --quick the shortest; give one of them")
    size = FULL if full else QUICK if quick else SHORT
    folder = folder or Path(f"runs/{size.folder}")
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"--out {folder} is a file; name a folder, new or of an earlier demo")
    write(text.INTRODUCTION)
    _get_model()
    try:
        Demo(folder, size).run()
    except KeyboardInterrupt:
        write(f"\nStopped. The same command continues in {folder}.")
        raise


def _get_model() -> None:
    """Fetch the bundled model if it is not here, once somebody at the keyboard has agreed.

    Raises:
        CommandError: it is not here, and nobody was asked or the answer was no.
    """
    from ..models.bundled import BUNDLED, INSTALL
    from ..models.bundled_fetching import is_here

    if is_here():
        return
    question = f"\nThe bundled model, {BUNDLED}, is not on this machine. Fetch it now (90 MB)?"
    if not sys.stdin.isatty() or not typer.confirm(question, default=True, err=True):
        raise CommandError(f"the demo needs the bundled model; fetch it with: tdpo cache fetch, or: {INSTALL}")
    fetch_with_words()


@dataclass
class Demo:
    """The stages of the demo, and a record of the finished ones (demo.json), which a rerun skips."""

    folder: Path
    size: Size
    dtype: str = ""
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self) -> None:
        """Run all stages. Raises CommandError for a folder that holds something else or a demo with other settings."""
        self._read_record()
        self._choose_dtype()
        common = [*self.size.common, f"model.dtype={self.dtype}"]
        on_pairs = self._recipes_on_pairs(common)
        recipes: dict[str, AnyRecipe] = {**on_pairs, **self._recipes_on_rewards(common)}
        first = next(iter(on_pairs.values()))
        budgets = self._responses_scored(first, recipes)
        write(f"\n{self._remark(first, recipes, budgets)}")
        self._sample(first)
        for label, recipe in recipes.items():
            self._train(label, recipe, text.TRAINING[label].format(**budgets))
        for label, recipe in recipes.items():
            self._evaluate(label, recipe, first)
        report = self._report(recipes, self._remark(first, recipes, budgets))
        self._summarise(recipes, budgets, report)

    def _choose_dtype(self) -> None:
        """Choose the dtype whose products are measured to be faster here, unless an earlier call has chosen."""
        if self.dtype:
            write(f"\nThe demo runs in {self.dtype}, as it began.")
            return
        from ..models.devices import device_of
        from ..models.product_speed import product_speed

        speed = product_speed(device_of())
        self.dtype = "bfloat16" if speed.prefers_half else "float32"
        write(text.DTYPE[self.dtype].format(measured=speed.describe()))

    def _recipes_on_pairs(self, common: list[str]) -> dict[str, Recipe]:
        """Load the recipes that train on pairs. They share the pairs and the number of updates."""
        from .recipe import load_example

        pairs = [f"data.train={self.folder / 'pairs.jsonl'}", f"data.eval={self.folder / 'pairs_held_out.jsonl'}"]
        return {
            label: load_example(name, [f"run_dir={self.folder / label.lower()}", *pairs, *self.size.on_pairs, *common])
            for label, name in ON_PAIRS.items()
        }

    def _recipes_on_rewards(self, common: list[str]) -> dict[str, AnyRecipe]:
        from .recipe import load_ppo_example

        return {
            label: load_ppo_example(name, [f"run_dir={self.folder / label.lower()}", *self.size.on_rewards, *common])
            for label, name in ON_REWARDS.items()
        }

    def _responses_scored(self, first: Recipe, recipes: Mapping[str, AnyRecipe]) -> dict[str, int]:
        """Return how many scored responses each method learns from, the budget in which methods can be compared."""
        from ..config import PPORecipe

        assert first.environment is not None
        sampled = len(first.environment.load().train) * first.sampling.samples_per_prompt
        return {
            label: r.ppo.iterations * r.rollouts.completions if isinstance(r, PPORecipe) else sampled
            for label, r in recipes.items()
        }

    def _remark(self, first: Recipe, recipes: Mapping[str, AnyRecipe], budgets: Mapping[str, int]) -> str:
        """Say how large this demo is, and what its numbers are worth, for the console and the report."""
        assert first.environment is not None
        environment = first.environment.load()
        held_out = len(environment.held_out[: first.evaluation.max_prompts])
        counts = ", ".join(f"{label} {count}" for label, count in budgets.items())
        return self.size.remark.format(
            train=len(environment.train),
            held_out=held_out,
            responses=held_out * first.evaluation.samples_per_prompt,
            scored=counts,
        )

    def _sample(self, recipe: Recipe) -> None:
        from .pairs import sample_to

        settings = {
            "model": recipe.model.name, "dtype": recipe.model.dtype, "seed": recipe.seed,
            "prompts": recipe.environment and recipe.environment.max_prompts, **recipe.sampling.model_dump(),
        }  # fmt: skip
        train, held_out = Path(recipe.data.train), Path(str(recipe.data.eval))
        self._stage("pairs", text.PAIRS, settings, [train], lambda: sample_to(recipe, train, "train", overwrite=True))
        self._stage(
            "held-out pairs",
            text.HELD_OUT_PAIRS,
            settings,
            [held_out],
            lambda: sample_to(recipe, held_out, "held_out", overwrite=True),
        )

    def _train(self, label: str, recipe: AnyRecipe, why: str) -> None:
        from ..runs import RunDirectory

        run = RunDirectory(recipe.run_dir)
        self._stage(
            f"training {label}",
            why,
            recipe.model_dump(include=TRAINING_SECTIONS),
            [run.path / "model"],
            lambda: _train(recipe, resume=run.is_run()),
        )

    def _evaluate(self, label: str, recipe: AnyRecipe, first: Recipe) -> None:
        from ..runs import RunDirectory

        run = RunDirectory(recipe.run_dir)
        # The base model gives the same responses in every evaluation, so the others take them from the first.
        base_from = None if recipe is first else RunDirectory(first.run_dir)
        self._stage(
            f"evaluating {label}",
            text.EVALUATION if recipe is first else "",
            recipe.evaluation.model_dump(),
            [run.path / "evaluation.json"],
            lambda: _evaluate(run, recipe, base_from),
        )

    def _report(self, recipes: Mapping[str, AnyRecipe], remark: str) -> Path:
        """Write the report. It is written anew each time: that takes a second, and the folder may hold more runs."""
        from ..report import write_report

        write("\nReport", style="bold")
        runs = [Path(recipe.run_dir) for recipe in recipes.values()]
        return write_report(runs, self.folder / "report.html", remark=remark)

    def _summarise(self, recipes: Mapping[str, AnyRecipe], budgets: Mapping[str, int], report: Path) -> None:
        from ..records.json_files import read_json
        from ..records.run_times import cache_seconds, training_seconds
        from ..runs import RunDirectory
        from ._tables import comparison_table, notes

        evaluations = {label: read_json(Path(r.run_dir) / "evaluation.json") for label, r in recipes.items()}
        logged = {label: RunDirectory(r.run_dir).metrics() for label, r in recipes.items()}
        extra = {
            "responses scored": {label: str(count) for label, count in budgets.items()},
            "updates": {label: str(read_json(Path(r.run_dir) / "status.json")["step"]) for label, r in recipes.items()},
            "training, seconds": {
                label: f"{training_seconds(lines) or self.stages[f'training {label}']['seconds']:.0f}"
                for label, lines in logged.items()
            },
            "cache, seconds": {
                label: f"{seconds:.0f}" for label, lines in logged.items() if (seconds := cache_seconds(lines))
            },
        }
        write("")
        out().print(comparison_table(evaluations, extra=extra))
        for line in notes(evaluations):
            write(line)
        write(text.READING)
        times = ", ".join(f"{name} {duration(stage['seconds'])}" for name, stage in self.stages.items())
        total = duration(sum(stage["seconds"] for stage in self.stages.values()))
        write(f"\nTime: {total} ({times})\nReport: {report}\n\n{text.NEXT.format(folder=self.folder)}")

    def _stage(
        self, name: str, why: str, settings: Mapping[str, Any], outputs: list[Path], work: Callable[[], Any]
    ) -> None:
        """Do one stage, unless it is recorded as finished. Raises CommandError if it was done with other settings."""
        write(f"\n{name[0].upper()}{name[1:]}", style="bold")
        if why:
            write(why)
        record = self.stages.get(name)
        if record is not None and record["settings"] != settings:
            raise CommandError(f"{self.folder} holds a demo with other settings ({name}); choose another --out")
        if record is not None and all(path.exists() for path in outputs):
            write(f"done before, in {duration(record['seconds'])}")
            return
        started = time.monotonic()
        work()
        self.stages[name] = {"settings": dict(settings), "seconds": round(time.monotonic() - started, 1)}
        self._write_record()

    def _read_record(self) -> None:
        """Read what earlier calls finished. Only a folder that is empty or holds a demo is ever written to."""
        from ..records.json_files import read_json

        if (self.folder / RECORD).exists():
            record = read_json(self.folder / RECORD)
            self.stages, self.dtype = record["stages"], record.get("dtype", "")
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise CommandError(f"{self.folder} is not empty and holds no demo; choose another --out")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_record()

    def _write_record(self) -> None:
        from ..records.json_files import write_json

        write_json(self.folder / RECORD, {"dtype": self.dtype, "stages": self.stages})


def _train(recipe: AnyRecipe, *, resume: bool) -> None:
    from ..config import PPORecipe

    if isinstance(recipe, PPORecipe):
        from .ppo import ppo_recipe

        ppo_recipe(recipe, resume=resume)
    else:
        from .train import train_recipe

        train_recipe(recipe, resume=resume)


def _evaluate(run: RunDirectory, recipe: AnyRecipe, base_from: RunDirectory | None) -> None:
    quiet_libraries()
    from ..evaluation import evaluate_run

    with progress_in_stages(run.path.name) as update:
        evaluate_run(run, recipe, base_from=base_from, progress=update)
