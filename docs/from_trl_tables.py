"""The tables of docs/from_trl.md, made from the code and from the installed TRL: `python docs/from_trl_tables.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from trl import DPOConfig, DPOTrainer

from tdpo import TDPOConfig
from tdpo.config import flatten, load_recipe, markdown_table, trl_names
from tdpo.training import arguments
from tdpo.training.offline import config as offline
from tdpo.workflows.trainer_arguments import PAIR_KEYS

PAGE = Path(__file__).with_name("from_trl.md")
MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SAME_NAME = {
    "max_length": "the same: rows are cut at their end, as with keep_start",
    "label_smoothing": "the same with `loss`; refused beside `loss_type`, as TRL has no smoothing with sigmoid",
}
REFUSED_VALUES = {
    "average_tokens_across_devices": "False, which has no effect: every row weighs the same on any device",
    "accelerator_config": "dispatch_batches=True, which would cut batches apart by rows",
}
# What has no default to compare: it is always given, or another row has it.
NO_DEFAULTS = ("output_dir", "gradient_accumulation_steps", "train_sampling_strategy")
# Defaults that TRL resolves later.
RESOLVED = {"bf16": True}
# Of the names that tdpo logs as well, those whose number can be another one.
OTHER_NUMBERS = {
    "rewards/accuracies": "the same number without ties: a tie counts half here, and as wrong in TRL",
}
# What TRL's trainer logs, with what is logged here under log_names="both"; "" is the same name and number.
OTHER_LOGS = {
    **dict.fromkeys(trl_names.NOT_LOGGED, "not logged: logits are never computed whole"),
    "entropy": "not logged: `policy_entropy`, weighted by tokens; TRL averages the means of micro-batches",
    "num_tokens": "the same number; after `--resume` it goes on, TRL's begins at 0",
    "aux_loss": "not logged: a router's loss is refused",
}
CALL = {
    "data_collator": "TRL's own `DataCollatorForPreference` is accepted; others are refused: layouts are made here",
    "compute_metrics": "called with a number for each pair (`predictions` is a dictionary of arrays), not with logits",
    "quantization_config": "taken for a model that is given by name, with a `peft_config`",
}


def default_of(config: Any, name: str) -> Any:
    option = next((option for option in fields(config) if option.name == name), None)
    if option is None:
        return None
    return option.default_factory() if option.default_factory is not MISSING else option.default


def becomes(name: str) -> str:
    """What happens to a field of DPOConfig here, in a table's cell."""
    if name in trl_names.TAKEN:
        return trl_names.TAKEN[name].effect
    refused = {**arguments.REFUSED, **offline.REFUSED, **REFUSED_VALUES}
    return f"refused where it is set: {refused[name]}" if name in refused else SAME_NAME.get(name, "the same")


def own_fields() -> Iterator[str]:
    """The fields that DPOConfig has beside transformers'."""
    others = {option.name for option in fields(TrainingArguments)}
    return (option.name for option in fields(DPOConfig) if option.name not in others)


def with_older(table_of: dict[str, Any]) -> Iterator[str]:
    """The names of a table in TRL's order, then those that TRL has dropped."""
    return (name for name in [*own_fields(), *(n for n, row in table_of.items() if row.is_older)] if name in table_of)


def marked(name: str, row: Any) -> str:
    return f"`{name}`" + (" (earlier TRL)" if row.is_older else "")


def taken_table() -> str:
    same = [(f"`{name}`", becomes(name)) for name in own_fields() if name not in trl_names.NAMES]
    taken = [(marked(name, trl_names.TAKEN[name]), becomes(name)) for name in with_older(trl_names.TAKEN)]
    return markdown_table("| field of DPOConfig | here |", [*same, *taken])


def fixed_table() -> str:
    rows = []
    for name in with_older(trl_names.FIXED):
        row = trl_names.FIXED[name]
        values = dict.fromkeys([*(shown(value) for value in row.same), "`None`"])
        rows.append((marked(name, row), " ".join(values), row.why))
    return markdown_table("| field of DPOConfig | accepted | any other value … |", rows)


def inherited_table() -> str:
    """What becomes of the fields that DPOConfig has from transformers."""
    names = [option.name for option in fields(DPOConfig) if option.name not in set(own_fields())]
    other = [(f"`{name}`", becomes(name)) for name in names if becomes(name) != "the same"]
    same = ", ".join(f"`{name}`" for name in names if becomes(name) == "the same")
    return markdown_table("| field of TrainingArguments | here |", other) + f"\nThe same in both: {same}.\n"


def defaults_table() -> str:
    """Every setting whose default differs between TRL, `TDPOConfig` and a recipe."""
    recipe = flatten(load_recipe({"run_dir": "runs/mine", "data": {"train": "rows.jsonl"}}))
    keys = {**PAIR_KEYS, **offline.FIELDS.keys, "per_device_train_batch_size": "training.batch_size"}
    made = TDPOConfig("unused", use_cpu=True)
    rows = []
    for option in fields(DPOConfig):
        name = option.name
        if name in trl_names.NAMES or name in NO_DEFAULTS:
            continue
        key = keys.get(name)
        theirs, ours = RESOLVED.get(name, default_of(DPOConfig, name)), default_of(TDPOConfig, name)
        if ours is None and (name in TDPOConfig.__annotations__ or name == "gradient_checkpointing"):
            ours = getattr(made, name)
        by_key = recipe.get(key, None) if key else None
        if equal(theirs, ours) and (key is None or equal(theirs, by_key)):
            continue
        rows.append((f"`{name}`", shown(theirs), shown(ours), f"`{key}`: {shown(by_key)}" if key else "no key"))
    return markdown_table("| setting | TRL | TDPOConfig | recipe |", rows)


def equal(one: Any, other: Any) -> bool:
    nothing = (None, False, "none", [], -1)
    return one == other or (one in nothing and other in nothing)


def shown(value: Any) -> str:
    return f"`{value!r}`"


def logs_table() -> str:
    same = [
        (f"`{name}`", f"`{own}`", OTHER_NUMBERS.get(name, "the same number"))
        for name, own in trl_names.LOG_NAMES.items()
    ]
    other = [(f"`{name}`", "", remark) for name, remark in OTHER_LOGS.items()]
    return markdown_table("| TRL's name, logged with `log_names=\"both\"` | tdpo's name | |", [*same, *other])


def call_table() -> str:
    names = list(DPOTrainer.__init__.__annotations__)
    return markdown_table(
        "| argument, in TRL's order | here |",
        [(f"`{name}`", CALL.get(name, "the same")) for name in names if name != "return"],
    )


TABLES = {
    "taken": taken_table,
    "fixed": fixed_table,
    "inherited": inherited_table,
    "defaults": defaults_table,
    "logs": logs_table,
    "call": call_table,
}


def with_tables(page: str) -> str:
    """The page with every table made anew."""
    return MARK.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], page)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
