"""Tool calls and tool descriptions give the same tokens wherever the rows come from, and however they were stored."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tdpo.batches import tokenize_pairs
from tdpo.environments import load_prompts
from tdpo.preferences import BadPreferences, Preferences, Reason, load_preferences, preferences_from_dataset

Row = dict[str, Any]
DUMPED = (
    "{% for tool in tools or [] %}T{{ tool | tojson }}{% endfor %}{% if mode is defined %}M{{ mode }}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}C{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}"
    "{% endfor %}{% if 'tool_calls' in m and not m.tool_calls %}EMPTY{% endif %}|{% endfor %}"
)


class Characters:
    """A tokenizer with one token a character, around a real chat template."""

    bos_token_id = eos_token_id = None
    all_special_ids: Sequence[int] = ()
    added_tokens_decoder: Mapping[int, Any] = {}

    def __init__(self, template: str) -> None:
        self.chat_template = template

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}

    def apply_chat_template(self, messages: Any, *, tools: Any = None, **options: Any) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        assert not options.pop("tokenize") and not options.pop("return_dict", False)
        options.pop("add_generation_prompt")
        ((text,), _) = render_jinja_template([messages], tools=tools, chat_template=self.chat_template, **options)
        return str(text)

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def rendered(preferences: Preferences) -> list[str]:
    pairs = tokenize_pairs(preferences.rows, Characters(DUMPED), None).pairs
    return ["".join(map(chr, ids)) for p in pairs for ids in (p.prompt_ids, p.chosen_ids, p.rejected_ids)]


def calling(name: str, arguments: Any) -> list[Row]:
    function = {"name": name, "arguments": arguments}
    return [{"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}]


def tool(name: str, **properties: str) -> Row:
    schema = {"type": "object", "properties": {key: {"type": kind} for key, kind in properties.items()}}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


SEEK, SUM = tool("seek", place="string", near="boolean"), tool("sum", left="integer", right="integer")
ROWS: list[Row] = [
    {
        "prompt": [{"role": "user", "content": "Where is Kiel?"}],
        "chosen": calling("seek", {"place": "Kiel", "near": None}),
        "rejected": calling("sum", {"left": 1, "right": 4, "more": {"deep": [{"a": 1}, {"b": None}]}}),
        "tools": [SEEK, SUM],
        "chat_template_kwargs": {"mode": "short", "other": None},
    },
    {
        "prompt": [{"role": "user", "content": "1 + 4?"}, {"role": "assistant", "content": "What?", "tool_calls": []},
                   {"role": "user", "content": "The sum."}],
        "chosen": calling("sum", {"left": 1, "right": 4}),
        "rejected": calling("seek", {}),
        "tools": [SUM],
        "chat_template_kwargs": {"other": "x"},
    },
]  # fmt: skip


def as_jsonl(rows: list[Row], folder: Path) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "rows.jsonl"


def as_json(rows: list[Row], folder: Path) -> Path:
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder / "rows.json"


def as_parquet(rows: list[Row], folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def as_saved(rows: list[Row], folder: Path) -> Path:
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def as_json_typed_parquet(rows: list[Row], folder: Path) -> Path:
    """As `datasets` writes columns of objects with different keys today: JSON inside Parquet."""
    import datasets

    typed = datasets.Dataset.from_list(rows, on_mixed_types="use_json")
    assert "Json" in str(typed.features["tools"])
    typed.to_parquet(folder / "typed.parquet")
    return folder / "typed.parquet"


SOURCES = [as_json, as_parquet, as_saved, as_json_typed_parquet]


@pytest.mark.parametrize("store", SOURCES)
def test_every_source_gives_the_same_tokens(store: Callable[[list[Row], Path], Path], tmp_path: Path) -> None:
    expected = rendered(load_preferences(as_jsonl(ROWS, tmp_path)))
    assert "null" not in "".join(expected) and "EMPTY" not in "".join(expected)
    assert expected[1].endswith('C{"name": "seek", "arguments": {"place": "Kiel"}}|')
    assert expected[5].endswith('C{"name": "seek", "arguments": {}}|')
    assert rendered(load_preferences(store(ROWS, tmp_path))) == expected


def test_datasets_in_memory_give_the_same_tokens(tmp_path: Path) -> None:
    import datasets

    expected = rendered(load_preferences(as_jsonl(ROWS, tmp_path)))
    for dataset in (ROWS, datasets.Dataset.from_list(ROWS)):
        assert rendered(preferences_from_dataset(dataset)) == expected


@pytest.mark.parametrize("store", [as_jsonl, *SOURCES])
def test_prompt_rows_hold_the_same_in_every_source(store: Callable[[list[Row], Path], Path], tmp_path: Path) -> None:
    kept = ("prompt", "tools", "chat_template_kwargs")
    rows = [{name: row[name] for name in kept} for row in ROWS]
    first, second = load_prompts(store(rows, tmp_path)).prompts
    assert first.columns == {"tools": [SEEK, SUM], "chat_template_kwargs": {"mode": "short"}}
    assert second.columns == {"tools": [SUM], "chat_template_kwargs": {"other": "x"}}
    assert "tool_calls" not in second.prompt[1]


def test_json_text_keeps_the_nulls_that_somebody_wrote(tmp_path: Path) -> None:
    described = tool("seek", place="string")
    described["function"]["parameters"]["default"] = None
    row = {**ROWS[0], "tools": json.dumps([described]), "chosen": calling("seek", '{"place": null}')}
    for source in (as_jsonl([row], tmp_path), as_parquet([row], tmp_path)):
        prompt, chosen, _ = rendered(load_preferences(source))
        assert '"default": null' in prompt and chosen.endswith('"arguments": {"place": null}}|')


# Arguments as JSON text


def one(arguments: Any, **more: Any) -> Row:
    return {**ROWS[0], "chosen": calling("sum", arguments), **more}


def test_arguments_as_json_text_are_the_object() -> None:
    as_text, as_object = (rendered(preferences_from_dataset([one(a)])) for a in ('{"left": 1}', {"left": 1}))
    assert as_text == as_object and as_text[1].endswith('C{"name": "sum", "arguments": {"left": 1}}|')


def test_calls_in_other_places_and_forms_are_decoded_too() -> None:
    bare = [{"role": "assistant", "content": "", "tool_calls": [{"name": "sum", "arguments": '{"left": 1}'}]}]
    whole = [
        {"role": "assistant", "content": "", "tool_calls": json.dumps([{"name": "sum", "arguments": {"left": 1}}])}
    ]
    older = [{"role": "assistant", "content": "x", "function_call": {"name": "sum", "arguments": '{"left": 1}'}}]
    later = [*calling("sum", '{"left": 1}'), {"role": "tool", "content": "1"}, {"role": "assistant", "content": "1"}]
    for turns in (bare, whole, later):
        (row,) = preferences_from_dataset([{**ROWS[0], "chosen": turns}]).rows
        call = row.chosen[0]["tool_calls"][0]  # type: ignore[index]
        assert call.get("function", call)["arguments"] == {"left": 1}
    (row,) = preferences_from_dataset([{**ROWS[0], "chosen": older}]).rows
    assert row.chosen[0]["function_call"]["arguments"] == {"left": 1}  # type: ignore[index]
    prompt = [*ROWS[0]["prompt"], *later[:2]]
    (row,) = preferences_from_dataset([{**ROWS[0], "prompt": prompt}]).rows
    assert row.prompt[1]["tool_calls"][0]["function"]["arguments"] == {"left": 1}  # type: ignore[index]


def test_descriptions_as_json_text_are_decoded() -> None:
    texts = [
        json.dumps(SEEK),
        {**SUM, "function": {**SUM["function"], "parameters": json.dumps(SUM["function"]["parameters"])}},
    ]
    (row,) = preferences_from_dataset([{**ROWS[0], "tools": texts, "chat_template_kwargs": '{"mode": "x"}'}]).rows
    assert row.extra == {"tools": [SEEK, SUM], "chat_template_kwargs": {"mode": "x"}}


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("{'left': 1}", "Expecting property name"),
        ('{"left": 1', "str: '{\"left\": 1'; Expecting"),
        ("1", "str: '1'"),
        ("", "a call without arguments has {}"),
        ('"{}"', "str: '\"{}\"'"),
        ("[1]", "str: '[1]'"),
        ([["left", 1]], "list: [['left', 1]]"),
        (7, "int: 7"),
    ],
)
def test_arguments_that_are_no_object_are_refused(arguments: Any, shown: str) -> None:
    with pytest.raises(BadPreferences) as caught:
        preferences_from_dataset([one(arguments)])
    (problem,) = caught.value.problems
    assert (problem.field, problem.reason) == ("chosen[0].tool_calls[0].function.arguments", Reason.BAD_ARGUMENTS)
    assert shown in problem.text


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        (one({"a": datetime.date(2020, 1, 1)}), "chosen[0].tool_calls[0].function.arguments.a", Reason.NOT_JSON_VALUE),
        (one({"a": [1, float("nan")]}), "chosen[0].tool_calls[0].function.arguments.a[1]", Reason.NOT_JSON_VALUE),
        (one({}, tools=[{"name": "f", "limit": b"x"}]), "tools[0].limit", Reason.NOT_JSON_VALUE),
        (one({}, tools=[{"name": "f", "parameters": "none"}]), "tools[0].parameters", Reason.BAD_TOOLS),
        (one({}, tools=["f()"]), "tools[0]", Reason.BAD_TOOLS),
        (one({}, chat_template_kwargs={"a": {"b": {1, 2}}}), "chat_template_kwargs.a.b", Reason.NOT_JSON_VALUE),
        ({**ROWS[0], "chosen": [{"role": "assistant", "content": "", "tool_calls": "sum(1)"}]},
         "chosen[0].tool_calls", Reason.BAD_TOOL_CALLS),
        ({**ROWS[0], "chosen": [{"role": "assistant", "content": "", "tool_calls": ["sum(1)"]}]},
         "chosen[0].tool_calls[0]", Reason.BAD_TOOL_CALLS),
    ],
)  # fmt: skip
def test_other_faults_of_calls_and_tools_name_their_place(row: Row, field: str, reason: Reason) -> None:
    with pytest.raises(BadPreferences) as caught:
        preferences_from_dataset([row])
    assert [(p.field, p.reason) for p in caught.value.problems][:1] == [(field, reason)]


def test_nesting_without_end_is_a_fault_of_the_row() -> None:
    deep: Any = 1
    for _ in range(2000):
        deep = {"a": deep}
    read = preferences_from_dataset([one(deep), ROWS[1]], on_bad_rows="skip")
    assert [(p.row, p.reason) for p in read.problems] == [(1, Reason.TOO_DEEP)]
