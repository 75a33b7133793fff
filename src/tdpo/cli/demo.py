"""`tdpo demo`: the commands, one after another, on the bundled model, with the reasons."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import _demo_text as text
from ._console import duration, out, write
from ._errors import CommandError
from ._options import Debug

if TYPE_CHECKING:
    from ..config import Recipe

RECORD = "demo.json"
METHODS = {"TDPO2": "sentiment_tdpo2", "DPO": "sentiment_dpo"}
# A look at every stage in about a minute; the numbers mean nothing.
QUICK = (
    "sampling.samples_per_prompt=2",
    "sampling.pairs_per_prompt=1",
    "sampling.max_new_tokens=8",
    "training.epochs=null",
    "training.max_steps=2",
    "training.batch_size=4",
    "evaluation.samples_per_prompt=1",
    "evaluation.max_new_tokens=8",
)


def demo(
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Default: runs/demo, or runs/demo-quick.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="All stages in a minute or two altogether, too short for meaningful numbers."),
    ] = False,
    debug: Debug = False,
) -> None:
    """Show everything on the bundled model: pairs, training with TDPO2 and DPO, evaluation, report.

    Needs no download and no GPU; the whole takes about nine minutes on two cores.
    Interrupted, the same command continues.

    [bold]Examples[/bold]

        tdpo demo
        tdpo demo --quick
        tdpo demo --out /tmp/demo
    """
    folder = folder or Path("runs/demo-quick" if quick else "runs/demo")
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"--out {folder} is a file; name a folder, new or of an earlier demo")
    write(text.INTRODUCTION)
    try:
        Demo(folder, QUICK if quick else ()).run()
        if quick:
            write(text.TOO_SHORT)
    except KeyboardInterrupt:
        write(f"\nStopped. The same command continues in {folder}.")
        raise


@dataclass
class Demo:
    """The stages, and a record of those that are finished (demo.json), which a rerun skips."""

    folder: Path
    overrides: tuple[str, ...] = ()
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self) -> None:
        self._read_record()
        recipes = self._recipes()
        first = next(iter(recipes.values()))
        self._sample(first)
        for label, recipe in recipes.items():
            self._train(label, recipe)
        for label, recipe in recipes.items():
            self._evaluate(label, recipe)
        report = self._report(recipes)
        self._summarise(recipes, report)

    def _recipes(self) -> dict[str, Recipe]:
        """Both recipes, with the same pairs and the same budget."""
        from ..models import has_no_units_for
        from .recipe import load_example

        precision: tuple[str, ...] = ()
        if has_no_units_for("bfloat16"):
            precision = ("model.dtype=float32",)
            write(text.NO_BF16)
        return {
            label: load_example(
                name,
                [
                    f"run_dir={self.folder / label.lower()}",
                    f"data.train={self.folder / 'pairs.jsonl'}",
                    f"data.eval={self.folder / 'pairs_held_out.jsonl'}",
                    *precision,
                    *self.overrides,
                ],
            )
            for label, name in METHODS.items()
        }

    def _sample(self, recipe: Recipe) -> None:
        from .pairs import sample_to

        settings = {"model": recipe.model.name, "seed": recipe.seed, **recipe.sampling.model_dump()}
        train, held_out = Path(recipe.data.train), Path(str(recipe.data.eval))
        self._stage("pairs", text.PAIRS, settings, [train], lambda: sample_to(recipe, train, "train", overwrite=True))
        self._stage(
            "held-out pairs",
            text.HELD_OUT_PAIRS,
            settings,
            [held_out],
            lambda: sample_to(recipe, held_out, "held_out", overwrite=True),
        )

    def _train(self, label: str, recipe: Recipe) -> None:
        from ..runs import RunDirectory
        from .train import train_recipe

        run = RunDirectory(recipe.run_dir)
        settings = recipe.model_dump(include={"loss", "training", "model", "seed"})
        self._stage(
            f"training {label}",
            text.TRAINING[label],
            settings,
            [run.path / "model"],
            lambda: train_recipe(recipe, resume=run.is_run()),
        )

    def _evaluate(self, label: str, recipe: Recipe) -> None:
        from ..runs import RunDirectory
        from .evaluate import evaluate_in

        run = RunDirectory(recipe.run_dir)
        self._stage(
            f"evaluating {label}",
            text.EVALUATION if label == "TDPO2" else "",
            recipe.evaluation.model_dump(),
            [run.path / "evaluation.json"],
            lambda: evaluate_in(run, recipe),
        )

    def _report(self, recipes: Mapping[str, Recipe]) -> Path:
        from ..report import write_report

        path = self.folder / "report.html"
        runs = [Path(recipe.run_dir) for recipe in recipes.values()]
        self._stage("report", "", {}, [path], lambda: write_report(runs, path))
        return path

    def _summarise(self, recipes: Mapping[str, Recipe], report: Path) -> None:
        from ..runs import read_json
        from ._tables import comparison_table, notes

        evaluations = {label: read_json(Path(r.run_dir) / "evaluation.json") for label, r in recipes.items()}
        seconds = {label: f"{self.stages[f'training {label}']['seconds']:.0f}" for label in recipes}
        write("")
        out().print(comparison_table(evaluations, extra={"training, seconds": seconds}))
        for line in notes(evaluations):
            write(line)
        write(text.READING)
        times = ", ".join(f"{name} {duration(stage['seconds'])}" for name, stage in self.stages.items())
        total = duration(sum(stage["seconds"] for stage in self.stages.values()))
        write(f"\nTime: {total} ({times})\nReport: {report}\n\n{text.NEXT.format(folder=self.folder)}")

    def _stage(
        self, name: str, why: str, settings: Mapping[str, Any], outputs: list[Path], work: Callable[[], Any]
    ) -> None:
        """Do one stage unless it is recorded as finished with these settings; refuse to mix settings."""
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
        """What earlier calls finished. Only a folder that is empty or holds a demo is ever written to."""
        from ..runs import read_json

        if (self.folder / RECORD).exists():
            self.stages = read_json(self.folder / RECORD)["stages"]
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise CommandError(f"{self.folder} is not empty and holds no demo; choose another --out")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_record()

    def _write_record(self) -> None:
        from ..runs import write_json

        write_json(self.folder / RECORD, {"stages": self.stages})
