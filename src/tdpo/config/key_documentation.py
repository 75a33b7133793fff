"""The documentation of every key of a recipe, made from the schema: docs/recipe.md and `tdpo recipe`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticUndefined

from ._explain import entry_of, expected, fields, meaning, section_of
from ._sections import Section
from .online_schema import OnlineRecipe
from .ppo_schema import PPORecipe
from .schema import Recipe
from .study_schema import Study

HEADER = """# The recipe

One YAML file describes a run on preferences, or, with a section `ppo`, a [PPO run](#the-ppo-recipe), or, with a section
`online`, a run on [pairs of own responses](#the-online-recipe). Only `run_dir` and `data.train` have no default. Any
key can be overridden on the command line by its dotted name,
`tdpo train recipe.yaml loss.beta=0.2 model.lora=null`, where the value is YAML. A key that is unknown, of the wrong
type, out of range, or without effect beside the others is refused before anything loads. The resolved recipe, with
every default filled in, is the first file of the run directory. A recipe has at most 128 KiB, 5,000 keys and values
(aliases filled in) and 32 levels, and text in it is one line without control characters.

Made from the schema: `tdpo recipe --markdown > docs/recipe.md`.
"""

PPO_HEADER = """# The PPO recipe

A recipe with a section `ppo` (`ppo: {}` is enough) is one for `tdpo ppo`. Prompts and reward come from an environment,
or from `prompts` together with `rewards`. The sections `model`, `environment` and `evaluation` are those from above, as
are `engine`, `url`, `adapter_dir` and `timeout` of `sampling` ([sampling from a vLLM server](vllm.md)).
"""

ONLINE_HEADER = """# The online recipe

A recipe with a section `online` (`online: {}` is enough) is one for `tdpo train`, on pairs that the policy draws itself
while it learns. Prompts and reward come from an environment, or from `prompts` together with `rewards`, as in a PPO
recipe. With `loss.name` kl prompts are enough; rewards given beside it are logged and evaluated, and not learned from.
It also has `rollouts`, `loss`, `model`, `sampling` and `evaluation` as above.
"""


STUDY_HEADER = """# The study

A file with `arms` is one for `tdpo compare`. Its sections `model`, `sampling`, `training`, `rollouts`, `online`, `ppo`
and `evaluation` are those from above and hold for all runs. A task has the section `environment` or `data`. What a
study has of its own:
"""


@dataclass(frozen=True)
class KeyDocumentation:
    """One key of the recipe: dotted name, default ("required" without one), accepted values, meaning."""

    key: str
    default: str
    expected: str
    meaning: str
    is_section: bool


def documented_keys(schema: type[Section] = Recipe) -> list[KeyDocumentation]:
    """Every key of one kind of recipe in the order of the file, a section before its keys.

    The keys of a list's entries are called `list[].key`.
    """
    return [
        KeyDocumentation(
            key=key,
            default=_shown(field.default),
            expected=expected(field),
            meaning=meaning(field),
            is_section=(section_of(field) or entry_of(field)) is not None,
        )
        for key, field in fields(schema)
    ]


def only_in_ppo() -> list[KeyDocumentation]:
    """The keys of a PPO recipe that a recipe for preferences lacks, or has with another meaning."""
    shared = documented_keys()
    return [row for row in documented_keys(PPORecipe) if row not in shared]


def only_in_online() -> list[KeyDocumentation]:
    """The keys of a recipe on own pairs that the other recipes lack, or have with another meaning."""
    elsewhere = [*documented_keys(), *documented_keys(PPORecipe)]
    return [row for row in documented_keys(OnlineRecipe) if row not in elsewhere]


def only_in_studies() -> list[KeyDocumentation]:
    """The keys that a study has of its own."""
    elsewhere = [*documented_keys(), *documented_keys(PPORecipe)]
    return [row for row in documented_keys(Study) if row not in elsewhere and not row.key.startswith("tasks[].data.")]


def _shown(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, Section):
        return ""
    return str(default)


def recipe_markdown() -> str:
    """The text of docs/recipe.md."""
    rows, ppo_rows = documented_keys(), documented_keys(PPORecipe)
    studies = only_in_studies()
    own_of_studies = ("tasks", "arms", "claims", "claims[].parts", "questions")
    own = only_in_ppo()
    with_own_keys = {_section_of_key(row.key) for row in own if not row.is_section}
    of_their_own = [row for row in own if row.is_section and row.key in with_own_keys]
    online_rows = documented_keys(OnlineRecipe)
    return "\n".join(
        [
            HEADER,
            *_sections(rows, [row for row in rows if row.is_section]),
            PPO_HEADER,
            *_sections(ppo_rows, of_their_own),
            ONLINE_HEADER,
            *_sections(online_rows, [row for row in online_rows if row.is_section and row.key.startswith("online")]),
            STUDY_HEADER,
            *_sections(
                studies,
                [row for row in studies if row.is_section and row.key in own_of_studies],
            ),
        ]
    )


def _sections(rows: list[KeyDocumentation], sections: list[KeyDocumentation]) -> Iterator[str]:
    """A table of the keys outside of any section, then one for each of `sections`."""
    yield _table([row for row in rows if "." not in row.key and not row.is_section])
    for section in sections:
        keys = [row for row in rows if _section_of_key(row.key) == section.key and not row.is_section]
        yield f"## {section.key}\n{section.meaning}\n\n{_table(keys)}"


def _section_of_key(key: str) -> str:
    return key.rpartition(".")[0].removesuffix("[]")


def _table(rows: list[KeyDocumentation]) -> str:
    cells = ((f"`{r.key}`", r.default, r.expected, r.meaning) for r in rows)
    return markdown_table("| key | default | accepts | meaning |", cells)


def markdown_table(head: str, rows: Iterable[Sequence[str]]) -> str:
    """A table with this first line; a bar within a cell is escaped."""
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
