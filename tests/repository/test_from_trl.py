"""docs/from_trl.md and docs/python_fields.md are true: both scripts give equal numbers, and no field is forgotten."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_models import build_model, build_tokenizer
from helpers.training_cases import plain_rows
from tdpo.config import trl_names
from tdpo.training import TDPOConfig
from tdpo.workflows.python_pages import python_fields_markdown
from tdpo.workflows.trl_settings import BESIDES, DEFAULTS, OTHERS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/from_trl.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def tables() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs/from_trl_tables.py"))


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The states that both scripts of the page end with, in a folder with a tiny model and rows of text."""
    folder = tmp_path_factory.mktemp("scripts")
    build_model("llama").save_pretrained(folder / "my-model")
    build_tokenizer().save_pretrained(folder / "my-model")
    (folder / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain_rows(24)))
    states = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for script in SCRIPTS:
            names: dict[str, Any] = {}
            # On the CPU whatever the machine has, and quiet.
            exec(script.replace('report_to="none",', 'report_to="none", use_cpu=True, disable_tqdm=True,'), names)
            states[type(names["trainer"]).__name__] = names["trainer"].state
    return states


def test_the_two_scripts_differ_by_names_alone() -> None:
    [theirs, ours] = SCRIPTS
    renamed = theirs.replace("from trl import", "from tdpo import").replace("runs/trl", "runs/tdpo")
    assert ours == re.sub(r"\bDPO(Config|Trainer)", r"TDPO\1", renamed)


def test_the_two_scripts_give_equal_numbers(histories: dict[str, Any]) -> None:
    theirs, ours = (histories[name].log_history for name in ("DPOTrainer", "TDPOTrainer"))
    compared = {"loss", "grad_norm", "learning_rate", "num_tokens", *trl_names.LOG_NAMES}
    assert [line["step"] for line in theirs] == [line["step"] for line in ours]
    numbers = 0
    for expected, line in zip(theirs, ours, strict=True):
        for name in expected.keys() & {*compared, *(f"eval_{name}" for name in compared)}:
            if line["step"] == 1 and name == "rewards/accuracies":
                assert line[name] == 0.5, "ties alone, which the page says count half"
                continue  # of TRL's margins rounding alone decides
            # float32 sums of 70 nats, in other orders; rewards are β times a difference of two of these
            assert line[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), (line["step"], name)
            numbers += 1
    assert numbers == 4 * 10 - 1 + 2 * 8
    assert max(line["rewards/margins"] for line in ours if "rewards/margins" in line) > 0.01, "the scripts learn"
    theirs, ours = histories["DPOTrainer"], histories["TDPOTrainer"]
    assert Path(ours.best_model_checkpoint).name == Path(theirs.best_model_checkpoint).name


def test_the_tables_are_those_of_the_code_and_of_the_installed_trl() -> None:
    assert tables()["with_tables"](PAGE) == PAGE, "run: python docs/from_trl_tables.py"


def test_every_field_of_trls_configuration_is_understood_and_on_the_page() -> None:
    from trl import DPOConfig

    theirs = {option.name for option in dataclasses.fields(DPOConfig)}
    assert theirs - {option.name for option in dataclasses.fields(TDPOConfig)} == set()
    assert {name for name in theirs if f"`{name}`" not in PAGE} == set()
    current = {name for name in trl_names.NAMES if not {**trl_names.TAKEN, **trl_names.FIXED}[name].is_older}
    assert current <= theirs, "no longer in TRL: mark it as older"
    assert theirs.isdisjoint(set(trl_names.NAMES) - current), "in TRL again: not older"


def test_trls_own_defaults_are_accepted(tmp_path: Path) -> None:
    """A script that writes every default out is no other script."""
    from trl import DPOConfig

    values = {name: tables()["default_of"](DPOConfig, name) for name in trl_names.NAMES}
    made = TDPOConfig(
        str(tmp_path), use_cpu=True, **{name: value for name, value in values.items() if value is not None}
    )
    assert (made.loss, made.reference) == ("dpo", "model")


def test_every_log_name_of_trl_is_on_the_page(histories: dict[str, Any]) -> None:
    logged = {name for line in histories["DPOTrainer"].log_history for name in line if "runtime" not in name}
    section = PAGE[PAGE.index("## Names in the logs") :]
    transformers = re.compile("eval_.*|train_.*|total_flos|epoch|step|loss|grad_norm|learning_rate")
    assert {name for name in logged if not transformers.fullmatch(name) and f"`{name}`" not in section} == set()


def test_the_settings_of_trl_dpo_and_their_defaults_are_the_installed_ones() -> None:
    from trl import DatasetMixtureConfig, DPOConfig, ModelConfig, ScriptArguments

    default_of, kinds = tables()["default_of"], (ScriptArguments, DPOConfig, ModelConfig, DatasetMixtureConfig)
    theirs = {o.name: default_of(kind, o.name) for kind in kinds for o in dataclasses.fields(kind)}
    resolved = {"output_dir": "trainer_output", "loss_type": "sigmoid"}  # by TrainingArguments; a list of one
    assert {name: theirs[name] for name in DEFAULTS} | resolved == DEFAULTS
    read = {*DEFAULTS, *OTHERS, *BESIDES, *trl_names.NAMES}
    assert theirs.keys() - {option.name for option in dataclasses.fields(TDPOConfig)} <= read


def test_the_page_of_python_fields_is_current_and_complete() -> None:
    from tdpo.training import PPOConfig

    page = (ROOT / "docs/python_fields.md").read_text(encoding="utf-8")
    assert python_fields_markdown() == page, "run: tdpo recipe --python > docs/python_fields.md"
    pair_part, ppo_part = page[: page.index("## PPOConfig")], page[page.index("## PPOConfig") :]
    for config, part in ((TDPOConfig, pair_part), (PPOConfig, ppo_part)):
        lacking = {option.name for option in dataclasses.fields(config) if f"`{option.name}`" not in part}
        assert lacking == set(), config.__name__
    for part in page.split("\n## ")[1:]:
        named = re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)
        twice = {name for name in named if named.count(name) > 1}
        assert twice == set(), "what is refused has no other meaning"
