"""The work of one cell: sample or train, evaluate, and write the numbers into its folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..config import AnyRecipe, OnlineRecipe, PPORecipe, Study, load_recipe
from ..environments import Environment
from ..evaluation import evaluate_base, evaluate_run
from ..evaluation.baselines import evaluate_best_of, evaluate_temperature
from ..methods import ARMS, BEST_OF
from ..models import load_causal_lm, load_tokenizer, quantization_config
from ..models.devices import describe_device, device_of
from ..models.product_speed import recorded_in
from ..preferences import PreferenceRow, write_preferences
from ..records.folders import remove
from ..records.json_files import write_json
from ..records.names import ADAPTERS_FOLDER, CELL_FILE
from ..records.study_tables import CellKey
from ..runs import ChangedInputs, DamagedCheckpoint, RunDirectory
from ..sampling.engines import response_sampler
from ..sampling.pair_sampling import pair_settings, sample_pairs
from ..sampling.sampler import SamplingSettings, encode_prompts
from ..workflows.online import train_online
from ..workflows.policy_of_recipe import load_policy
from ..workflows.ppo import train_ppo
from ..workflows.train import train
from .cell_judging import judge
from .cells import (
    StudyFiles,
    evaluation_recipe,
    reading_of,
    reference_cell,
    task_environment,
    task_of,
    training_prompts,
    training_recipe,
)
from .meeting import forget_meeting, model_on_target
from .running import DONE, Report
from .task_files import inputs_of
from .task_rows import task_rows


def do_cell(study: Study, files: StudyFiles, cell: CellKey, report: Report) -> None:
    """Do all work of a cell. What an interrupted call has finished is not done again."""
    with recorded_in(files.product_speed):  # measured once: all cells compute in one precision
        _Work(study, files, cell, report).do()


@dataclass
class _Work:
    """The state of a cell's work: its stage, the seconds of each stage, and where progress is reported."""

    study: Study
    files: StudyFiles
    cell: CellKey
    report: Report
    stage: str = "starting"
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.files.run(self.cell))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Report a stage and time it. After an interruption the seconds are those of the last call alone."""
        self.stage = stage
        self.report(stage, 0, 0, "")
        started = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - started, 1)

    def moved(self, done: int, total: int, note: str = "") -> None:
        self.report(self.stage, done, total, note)

    def do(self) -> None:
        """Do all work of the cell."""
        torch.set_num_threads(self.study.threads)
        print(f"Models run on {describe_device(device_of(self.study.model.device))}.")
        inputs = inputs_of(task_of(self.study, self.cell.task))
        self.run.path.mkdir(parents=True, exist_ok=True)
        kind = ARMS[self.cell.arm].kind
        if kind == "reference":
            self._reference()
        elif kind == "baseline":
            self._baseline()
        else:
            self._trained()
        with self.timed("diversity"):
            judge(self.study, self.files, self.cell)
        write_json(self.files.cell(self.cell) / CELL_FILE, {"state": DONE, "seconds": self.seconds, "inputs": inputs})

    # The reference: preferences of the task, and its own responses

    def _reference(self) -> None:
        task = task_of(self.study, self.cell.task)
        environment = task_environment(task)
        train_file = self.files.pairs(self.cell.task, self.cell.seed)
        held_out_file = self.files.pairs(self.cell.task, self.cell.seed, "held-out")
        if environment is None:
            with self.timed("preferences"):
                self._split_rows(train_file, held_out_file)
        elif not train_file.exists():
            if self.study.sampling.is_server:
                with self.timed("server"):
                    self._check_server(environment)
            with self.timed("preferences"):
                self._sample_pairs(environment, train_file)
        with self.timed("samples"):
            evaluate_base(self.run, self._reference_recipe(), progress=self._evaluation_progress)

    def _reference_recipe(self) -> AnyRecipe:
        """What the reference is sampled with, and the baselines that are made of it."""
        study, task = self.study, task_of(self.study, self.cell.task)
        held_out = self.files.pairs(self.cell.task, self.cell.seed, "held-out")
        train_file = self.files.pairs(self.cell.task, self.cell.seed)
        data = {"train": str(train_file), **reading_of(task)}
        values: dict[str, Any] = {"run_dir": str(self.run.path), "model": study.model.model_dump(), "data": data}
        values["training"] = {"precision": study.training.precision}  # the reference is held as the policies are
        if study.sampling.is_server:
            values["sampling"] = study.sampling.engine_alone().model_dump()
        if task.environment is None:
            data["eval"] = str(held_out)
        else:
            values["environment"] = task.environment.model_dump(exclude_unset=True)
        seed = study.evaluation.seed + self.cell.seed
        return load_recipe({**values, "evaluation": {**study.evaluation.model_dump(), "seed": seed}})

    def _split_rows(self, train_file: Path, held_out_file: Path) -> None:
        rows = task_rows(self.study, task_of(self.study, self.cell.task))
        assert rows.eval is not None  # the study's schema asks for held-out rows
        for part, file in ((rows.train, train_file), (rows.eval, held_out_file)):
            write_preferences(file, (_as_row(row) for row in part.rows))

    def _check_server(self, environment: Environment) -> None:
        """Raise what the evaluation of a trained cell would raise: that the server does not take its adapter."""
        model, folder = self.study.model, self.run.path / ADAPTERS_FOLDER
        tokenizer = load_tokenizer(model.name, trust_remote_code=model.trust_remote_code)
        prompt_ids = encode_prompts(tokenizer, [environment.train[0].rendered_from])[0]
        with closing(response_sampler(self.study.sampling, folder=folder, owner=str(folder.absolute()))) as sampler:
            sampler.prepare(load_policy(model), tokenizer, prompt_ids, SamplingSettings())

    def _sample_pairs(self, environment: Environment, out: Path) -> None:
        model = self.study.model
        trust = model.trust_remote_code
        base = load_causal_lm(
            model.name,
            dtype=model.dtype,
            trust_remote_code=trust,
            quantization=quantization_config(model.quantization),
            device=model.device,
        )
        tokenizer = load_tokenizer(model.name, trust_remote_code=trust)
        settings = pair_settings(self.study.sampling, environment, self.cell.seed)
        sampler = response_sampler(self.study.sampling, folder=out.parent / ADAPTERS_FOLDER, owner=str(out.absolute()))
        chosen = training_prompts(self.study, environment, self.cell.seed)
        out.parent.mkdir(parents=True, exist_ok=True)
        with closing(sampler):
            sample_pairs(
                base,
                tokenizer,
                chosen,
                out,
                settings,
                sampler=sampler,
                progress=lambda _tokens, done: self.moved(done, self.study.budget),
            )

    # Baselines, which are made of the reference

    def _baseline(self) -> None:
        reference = RunDirectory(self.files.run(reference_cell(self.cell.task, self.cell.seed)))
        recipe, progress = self._reference_recipe(), self._evaluation_progress
        with self.timed("samples"):
            if self.cell.arm == BEST_OF:
                evaluate_best_of(self.run, recipe, int(self.cell.strength), base_from=reference, progress=progress)
            else:
                temperature = float(self.cell.strength)
                evaluate_temperature(self.run, recipe, temperature, base_from=reference, progress=progress)

    # Trained cells

    def _trained(self) -> None:
        recipe = training_recipe(self.study, self.files, self.cell)
        run = self.run
        if run.status().get("state") != "finished":
            forget_meeting(self.files, self.cell)
            with self.timed("training"):
                self._train(recipe, run)
        recipe, trained = evaluation_recipe(self.study, self.files, self.cell), None
        if self.study.meet_targets and self.cell.arm in self.files.held:
            with self.timed("meeting"):
                trained = model_on_target(self.study, self.files, self.cell, recipe, progress=self._evaluation_progress)
        with self.timed("evaluation"):
            evaluate_run(
                run,
                recipe,
                trained=trained,
                base_from=RunDirectory(self.files.run(reference_cell(self.cell.task, self.cell.seed))),
                progress=self._evaluation_progress,
            )
        for checkpoint in run.checkpoints().complete:  # as large as the model each, and of no use any more
            remove(checkpoint)

    def _train(self, recipe: AnyRecipe, run: RunDirectory) -> None:
        """Begin the run or resume it. With changed inputs or a damaged checkpoint it begins anew; the log says so."""
        if run.is_run():
            try:
                with RunDirectory.training(recipe, resume=True) as holder:
                    self._learn(recipe, holder, resume=True)
                return
            except (ChangedInputs, DamagedCheckpoint) as error:
                print(f"{error}\nThe run is begun anew: half of it with other inputs would be no run of this study.")
        with RunDirectory.training(recipe, overwrite=True) as holder:
            self._learn(recipe, holder, resume=False)

    def _learn(self, recipe: AnyRecipe, run: RunDirectory, *, resume: bool) -> None:
        options: Any = {"resume": resume, "last_good": resume, "progress": self.moved, "say": print}
        if isinstance(recipe, PPORecipe):
            train_ppo(recipe, run, judge_held_out=False, **options)
        elif isinstance(recipe, OnlineRecipe):
            train_online(recipe, run, judge_held_out=False, **options)
        else:
            train(recipe, run, **options)

    def _evaluation_progress(self, stage: str, done: int, total: int) -> None:
        self.report(stage, done, total, "")


def _as_row(row: PreferenceRow) -> dict[str, Any]:
    finished = {"chosen_finished": row.chosen_finished, "rejected_finished": row.rejected_finished}
    return {**row.extra, "prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected, **finished}
