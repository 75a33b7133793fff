"""Names of the files in a run directory and in a study's folder."""

from __future__ import annotations

LOCK_FILE = ".lock"  # of a run directory and of a study's folder: held while a process works there

# A run directory
RECIPE_FILE = "recipe.yaml"
MACHINE_FILE = "environment.json"
STATUS_FILE = "status.json"
DATA_FILE = "data.json"
METRICS_FILE = "metrics.jsonl"
COMPLETIONS_FILE = "completions.jsonl"
EVALUATION_FILE = "evaluation.json"
SAMPLES_FILE = "samples.jsonl"
BASE_SAMPLES_FILE = "base_samples.json"
ANSWERS_FILE = "answers.jsonl"
REPORT_FILE = "report.html"
TRACKERS_FILE = "trackers.json"  # by what each tracker knows the run
MODEL_FOLDER = "model"
# What a trainer that is used in Python leaves beside these in its output_dir, in the place of a recipe.
TRAINER_FILE = "trainer.json"
# Inside a checkpoint or the folder of a model: what an evaluation of it found.
EVALUATION_FOLDER = "evaluation"
ADAPTERS_FOLDER = "sampler_adapters"  # the policy's adapter on its way to a server that samples from it
REPLACED_FOLDER = "replaced-run"  # the run that `--overwrite` replaces, until the new one has a model

# A study's folder
STUDY_FILE = "study.yaml"
ABOUT_FILE = "about.json"
CLAIMS_FILE = "claims.json"
QUESTIONS_FILE = "questions.json"  # of a study that asks any, with their answers
RESULTS_FILE = "results.csv"
TIMINGS_FILE = "timings.csv"  # apart from the results, since no two studies take equally long
PROMPTS_FILE = "prompts.csv"
RESPONSES_FILE = "responses.csv"
CURVES_FILE = "curves.csv"
# The folder of one of its cells
CELL_FILE = "cell.json"
LOG_FILE = "cell.log"
MEASURED_FILE = "measured.json"
# Beside the run of a cell that meets its target: the model that does, and what was measured to find it
MET_FOLDER = "model-on-target"
MET_FILE = "on_target.json"
