"""Every kind of broken row is named by file, row, field and reason, and the sound rows around it are kept."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from tdpo.preferences import BadPreferences, Reason, load_preferences, preferences_from_dataset, read_for

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
B = {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "s"}
TOOL = {"role": "tool", "content": "t"}


def row(**changes: Any) -> dict[str, Any]:
    """A sound conversational row with changes; `...` removes a field."""
    changed = {"prompt": [U], "chosen": [A], "rejected": [B]} | changes
    return {name: value for name, value in changed.items() if value is not ...}


def line(**changes: Any) -> bytes:
    return json.dumps(row(**changes)).encode()


# What stands in the line, the field and reason to be named, and a part of the text to be shown.
BROKEN: list[tuple[bytes, str, Reason, str]] = [
    (b'{"prompt": "p", "chosen": "c" "rejected": "r"}', "line", Reason.NOT_JSON, "delimiter at character 31"),
    (b'{"prompt": "p", "chosen": "c", "rejec', "line", Reason.NOT_JSON, "Unterminated string"),
    (b'{"chosen": ' + b"[" * 100_000, "line", Reason.NOT_JSON, "recursion"),
    (b'["p", "c", "r"]', "row", Reason.NOT_OBJECT, "list: ['p', 'c', 'r']"),
    (b"42", "row", Reason.NOT_OBJECT, "int: 42"),
    (b'{"prompt": "caf\xe9", "chosen": "c", "rejected": "r"}', "line", Reason.NOT_UTF8, r"caf\xe9"),
    (b'{"prompt": "p", "chosen": "c", "chosen": "d", "rejected": "r"}', "chosen", Reason.REPEATED_KEY, "'p'"),
    (b'{"prompt": [{"role": "user", "role": "tool", "content": "q"}]}', "role", Reason.REPEATED_KEY, "tool"),
    (line(prompt=...), "prompt", Reason.MISSING, "the row has chosen, rejected"),
    (line(chosen=..., choosen=[A]), "chosen", Reason.MISSING, "rename 'choosen' to 'chosen'"),
    (line(prompt=None), "prompt", Reason.NULL, ""),
    (line(rejected=None), "rejected", Reason.NULL, ""),
    (line(prompt=""), "prompt", Reason.EMPTY, "''"),
    (line(prompt=" \n\t"), "prompt", Reason.BLANK, r"' \n\t'"),
    (line(chosen=3), "chosen", Reason.WRONG_TYPE, "int: 3"),
    (line(chosen=True), "chosen", Reason.WRONG_TYPE, "bool: True"),
    (line(chosen=float("nan")), "chosen", Reason.WRONG_TYPE, "float: nan"),
    (line(rejected={"text": "r"}), "rejected", Reason.WRONG_TYPE, "dict: {'text': 'r'}"),
    (line(rejected=B), "rejected", Reason.WRONG_TYPE, "one message goes into a list of its own"),
    (line(rejected=["r"]), "rejected", Reason.WRONG_TYPE, "list: ['r']"),
    (line(prompt="a\0b"), "prompt", Reason.NUL, r"'a\x00b'"),
    (line(prompt="cut \ud83d"), "prompt", Reason.SURROGATE, r"'cut \ud83d'"),
    (line(chosen=json.dumps([A])), "chosen", Reason.MESSAGES_AS_TEXT, """'[{"role": "assistant\""""),
    (line(chosen=str([A])), "chosen", Reason.MESSAGES_AS_TEXT, "'[{'role': 'assistant'"),
    (line(chosen=[]), "chosen", Reason.NO_MESSAGES, "[]"),
    (line(prompt=[U, "and"]), "prompt[1]", Reason.NOT_MESSAGE, "'and'"),
    (line(chosen=[{"content": "a"}]), "chosen[0]", Reason.NO_ROLE, "{'content': 'a'}"),
    (line(prompt=[{"from": "human", "value": "q"}]), "prompt[0]", Reason.NO_ROLE, "ShareGPT"),
    (line(prompt=[U | {"role": "human"}]), "prompt[0].role", Reason.UNKNOWN_ROLE, "'human'; did you mean 'user'?"),
    (line(chosen=[A | {"role": "Assistant"}]), "chosen[0].role", Reason.UNKNOWN_ROLE, "did you mean 'assistant'?"),
    (line(chosen=[A | {"role": 7}]), "chosen[0].role", Reason.UNKNOWN_ROLE, "7"),
    (line(chosen=[{"role": "assistant"}]), "chosen[0]", Reason.NO_CONTENT, "{'role': 'assistant'}"),
    (line(chosen=[A | {"content": None}]), "chosen[0]", Reason.NO_CONTENT, "assistant"),
    (line(chosen=[A | {"content": ["x"]}]), "chosen[0].content", Reason.CONTENT_NOT_TEXT, "list: ['x']"),
    (line(chosen=[A | {"content": ""}]), "chosen[0].content", Reason.EMPTY, "''"),
    (line(rejected=[A | {"content": "\u00a0 "}]), "rejected[0].content", Reason.BLANK, r"'\xa0 '"),
    (line(prompt=[U | {"content": "\0"}]), "prompt[0].content", Reason.NUL, r"'\x00'"),
    (line(rejected=[B | {"content": "\udc80"}]), "rejected[0].content", Reason.SURROGATE, r"'\udc80'"),
    (line(chosen="a"), "row", Reason.MIXED_ROW, "prompt is messages, chosen is text, rejected is messages"),
    (line(chosen="a", rejected="b"), "row", Reason.MIXED_ROW, "prompt is messages, chosen is text, rejected is text"),
    (line(rejected=[A]), "rejected", Reason.IDENTICAL, "'a'"),
    (line(prompt="p", chosen="c", rejected="c"), "rejected", Reason.IDENTICAL, "'c'"),
    (line(prompt="other", chosen=[U, A], rejected=[U, B]), "prompt", Reason.PROMPT_UNRELATED, "'other'"),
    (line(prompt="q", chosen=[U, A], rejected=[A, U, B]), "prompt", Reason.NOTHING_SHARED, "'user'"),
    (line(chosen=[U, A]), "chosen", Reason.REPEATS_PROMPT, "roles: user, assistant"),
    (line(prompt=[U, A], chosen=[B], rejected=[A]), "prompt", Reason.PROMPT_END, "roles: user, assistant"),
    (line(chosen=[TOOL, A]), "chosen", Reason.RESPONSE_START, "roles: tool, assistant"),
    (line(rejected=[B, U]), "rejected", Reason.RESPONSE_END, "roles: assistant, user"),
    (line(prompt=[U, SYSTEM]), "prompt[1]", Reason.LATE_SYSTEM, "roles: user, system"),
    (line(chosen=[A, SYSTEM, A]), "chosen[1]", Reason.LATE_SYSTEM, "roles: assistant, system"),
    (line(prompt=[U, TOOL]), "prompt[1]", Reason.STRAY_TOOL, "roles: user, tool"),
    (line(rejected=[B, A]), "rejected[1]", Reason.ASSISTANT_TWICE, "roles: assistant, assistant"),
    (line(tools="[{"), "tools", Reason.BAD_TOOLS, "'[{'"),
    (line(tools='{"name": "f"}'), "tools", Reason.BAD_TOOLS, "dict"),
    (line(tools=["f"]), "tools[0]", Reason.BAD_TOOLS, "str: 'f'"),
    (line(prompt="p", chosen="c", rejected="r", tools=[{}]), "tools", Reason.NEEDS_TEMPLATE, "[{}]"),
    (line(chat_template_kwargs="no"), "chat_template_kwargs", Reason.BAD_TEMPLATE_KWARGS, "str: 'no'"),
    (line(chat_template_kwargs={"tokenize": True}), "chat_template_kwargs.tokenize", Reason.RESERVED_KWARG, "True"),
    (line(chosen_finished="yes"), "chosen_finished", Reason.NOT_BOOL, "'yes'"),
    (line(rejected_finished=1), "rejected_finished", Reason.NOT_BOOL, "1"),
    (line(chosen_reward=float("inf")), "chosen_reward", Reason.NOT_FINITE, "inf"),
    (line(rejected_reward="high"), "rejected_reward", Reason.NOT_FINITE, "'high'"),
    (line(images=["cat.png"]), "images", Reason.IMAGES, "['cat.png']"),
    (line(chosen=[A | {"tool_calls": "f(1)"}]), "chosen[0].tool_calls", Reason.BAD_TOOL_CALLS, "str: 'f(1)'"),
    (line(chosen=[A | {"tool_calls": [{"name": "f", "arguments": "x=1"}]}]), "chosen[0].tool_calls[0].arguments",
     Reason.BAD_ARGUMENTS, "str: 'x=1'; Expecting value"),
    (line(tools=[{"name": "f", "most": float("inf")}]), "tools[0].most", Reason.NOT_JSON_VALUE, "float: inf"),
    (line(tools=[{"name": json.loads("[" * 600 + "]" * 600)}]), "row", Reason.TOO_DEEP, "{'prompt'"),
    (line(prompt=[U | {"content": "sound 0"}]), "row", Reason.DUPLICATE, "row 1: "),
    (line(prompt="p", chosen="c", rejected="r"), "row", Reason.MIXED_FILE, "prompt: 'p'"),
]  # fmt: skip

# Reasons that need another kind of file than conversational JSON Lines with explicit prompts (a line of JSON in a text
# file: see test_prompts_files).
ELSEWHERE = {Reason.NOT_CSV, Reason.CELL_COUNT, Reason.PREFIX, Reason.ROW_AS_TEXT}


def write_mixed(folder: Path, good: int) -> tuple[Path, list[int], list[tuple[int, str, Reason, str]]]:
    """Sound rows with one broken row after each, as long as there are any: path, sound line numbers, expectations."""
    lines, sound, expected = [], [], []
    for i in range(good):
        lines.append(line(prompt=[U | {"content": f"sound {i}"}]))
        sound.append(len(lines))
        if i < len(BROKEN):
            raw, field, reason, text = BROKEN[i]
            lines.append(raw)
            expected.append((len(lines), field, reason, text))
    path = folder / "pairs.jsonl"
    path.write_bytes(b"\n".join(lines))
    return path, sound, expected


def test_each_of_the_kinds_of_broken_rows_is_named(tmp_path: Path) -> None:
    path, sound, expected = write_mixed(tmp_path, good=2000 - len(BROKEN))
    assert len({reason for _, _, reason, _ in BROKEN}) >= 30
    with pytest.raises(BadPreferences) as caught:
        load_preferences(path)
    problems = caught.value.problems
    assert [(p.row, p.field, p.reason) for p in problems] == [(row, field, r) for row, field, r, _ in expected]
    for problem, (number, field, reason, text) in zip(problems, expected, strict=True):
        assert text in problem.text
        assert str(problem).startswith(f"{path}:{number}: {field}: {reason}")
        assert "\n" not in str(problem) and str(problem).isprintable()
        assert len(problem.text) <= 240

    skipped = load_preferences(path, on_bad_rows="skip")
    assert [r.row for r in skipped.rows] == sound
    assert [r.prompt for r in skipped.rows] == [[U | {"content": f"sound {i}"}] for i in range(len(sound))]
    assert skipped.problems == problems


def test_the_message_shows_twenty_problems_and_counts_all_reasons(tmp_path: Path) -> None:
    path, sound, expected = write_mixed(tmp_path, good=len(BROKEN))
    with pytest.raises(BadPreferences) as caught:
        load_preferences(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {len(BROKEN)} of {2 * len(BROKEN)} rows cannot be used:")
    shown = [text for text in message.splitlines() if text.startswith(f"  {path}:")]
    assert shown == [f"  {problem}" for problem in caught.value.problems[:20]]
    assert f"… and {len(BROKEN) - 20} more" in message
    kinds = [(number, f"{re.sub(r'[0-9]+', '', field)} {reason}") for number, field, reason, _ in expected]
    for kind in {kind for _, kind in kinds}:
        rows = [number for number, each in kinds if each == kind]
        assert f"  {len(rows)} × {kind} (first in row {rows[0]})" in message
    assert f'leave them out with on_bad_rows="skip": {len(sound)} rows remain' in message


def test_the_message_names_what_its_caller_can_set() -> None:
    rows = [row(), row(), row(chosen=None)]

    def said(section: str | None) -> str:
        with pytest.raises(BadPreferences) as caught, read_for(section):
            preferences_from_dataset(rows)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        return str(caught.value)

    with pytest.raises(BadPreferences, match=r'on_bad_rows="skip": 1 row remains(?s:.)*repeated_rows="keep"'):
        preferences_from_dataset(rows)
    assert "with data.on_bad_rows=skip: 1 row remains" in said("data")
    assert "with data.repeated_rows=keep." in said("data") and "×" in said("data")
    assert "Repair these rows, or take them out." in said(None) and "skip" not in said(None)


def test_every_reason_is_proven_somewhere_and_documented() -> None:
    assert set(Reason) - {reason for _, _, reason, _ in BROKEN} == ELSEWHERE
    documented = (Path(__file__).parents[2] / "docs" / "preference_formats.md").read_text(encoding="utf-8")
    assert [reason for reason in Reason if f"| {reason} |" not in documented] == []


def test_the_summary_counts_rows_once_and_problems_by_reason(tmp_path: Path) -> None:
    rows = [row(), row(chosen=None, rejected=None), row(prompt=None), row(prompt=[U, U])]
    summary = preferences_from_dataset(rows, on_bad_rows="skip").summary()
    counts = {"rows": 2, "skipped": 2, "problems_by_reason": {"is null": 3}, "repeated": 0}
    assert summary == {"source": "dataset", **counts}
    assert json.loads(json.dumps(summary)) == summary


def test_all_problems_of_one_row_are_told_at_once() -> None:
    broken = row(prompt="", chosen=[A | {"role": "bot"}, {"role": "user"}], tools=3)
    with pytest.raises(BadPreferences, match="1 of 1 rows") as caught:
        preferences_from_dataset([broken])
    assert [p.field for p in caught.value.problems] == ["prompt", "chosen[0].role", "chosen[1]", "tools"]


def test_an_empty_object_misses_everything() -> None:
    problems = preferences_from_dataset([row(), {}], on_bad_rows="skip").problems
    assert [(p.field, p.reason, p.text) for p in problems] == [
        (name, Reason.MISSING, "the row has no fields") for name in ("prompt", "chosen", "rejected")
    ]


def test_skipping_everything_is_an_error() -> None:
    with pytest.raises(BadPreferences, match="No usable row is left"):
        preferences_from_dataset([row(chosen=None), row(rejected=None)], on_bad_rows="skip")


def test_a_duplicate_cites_its_first_occurrence_and_other_tools_are_no_duplicate() -> None:
    rows = [row(), row(tools=[{"name": "f"}]), row(prompt="q"), row(id=7)]
    with pytest.raises(BadPreferences) as caught:
        preferences_from_dataset(rows)
    # Row 3 writes its prompt as text, row 4 differs in a column that does not reach the model.
    assert [(p.row, p.reason, p.text[:6]) for p in caught.value.problems] == [
        (3, Reason.DUPLICATE, "row 1:"),
        (4, Reason.DUPLICATE, "row 1:"),
    ]


def test_what_is_accepted() -> None:
    developer = {"role": "developer", "content": "d"}
    call = {"role": "assistant", "tool_calls": [{"name": "f"}]}
    prompts = [
        [SYSTEM, developer, U],
        [SYSTEM | {"content": ""}, U],
        [U, U],
        [A, U],
        [SYSTEM],
        [U, call, TOOL, TOOL],
        [U, call, TOOL | {"content": ""}],
    ]
    read = preferences_from_dataset([row(prompt=prompt) for prompt in prompts])
    assert len(read) == len(prompts)
    options = {"chat_template_kwargs": None, "chosen_finished": None, "images": [], "chosen_reward": None}
    for tools in ([], "", None, "[]"):
        plain = {"prompt": "p", "chosen": "c", "rejected": "[1]", "tools": tools, **options}
        accepted = preferences_from_dataset([plain]).rows[0]
        assert accepted.chosen_finished and accepted.rejected == "[1]" and "tools" not in accepted.extra
    assert not preferences_from_dataset([row(rejected_finished=False)]).rows[0].rejected_finished


@pytest.mark.parametrize(
    ("chosen", "rejected", "field", "reason"),
    [
        ("Q: hi A: yes", "Q: hi A: yes sir", "rejected", Reason.PREFIX),
        ("Q: hi A: ", "Q: hi A:", "chosen", Reason.PREFIX),
        ("yes", "no", "prompt", Reason.NOTHING_SHARED),
        (" yes", " no", "prompt", Reason.NOTHING_SHARED),
        ("\n\nyes", "\n\nno", "prompt", Reason.NOTHING_SHARED),
        ("Q A \n", "Q A b", "chosen", Reason.BLANK),
        ("same", "same", "rejected", Reason.IDENTICAL),
        ([U, A], [TOOL, B], "prompt", Reason.NOTHING_SHARED),
        ([A], [B], "prompt", Reason.NOTHING_SHARED),
        ([A, U, B], [A], "prompt", Reason.NOTHING_SHARED),
        ([U], [U, A], "chosen", Reason.RESPONSE_START),
        ([U, A, U, B], [U, A, U | {"content": "else"}, B], "prompt", Reason.PROMPT_END),
    ],
)
def test_implicit_prompts_that_cannot_be_found(chosen: Any, rejected: Any, field: str, reason: Reason) -> None:
    with pytest.raises(BadPreferences) as caught:
        preferences_from_dataset([{"chosen": chosen, "rejected": rejected}])
    assert [(p.field, p.reason) for p in caught.value.problems] == [(field, reason)]


def test_broken_csv_records_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(
        b"prompt,chosen,rejected\n"
        b'"two\nlines",good,bad\n'
        b"p,one cell too,few,many\n"
        b"p\n"
        b"p,caf\xe9,r\n"
        b'p,"closed" too early,r\n'
        b'p,"[{""role"": ""assistant""}, oops",r\n'
        b"p,,r\n"
        b"q,good,bad\n"
        b'p,"never closed,r\n'
    )
    read = load_preferences(path, on_bad_rows="skip")
    assert [(r.row, r.prompt) for r in read.rows] == [(1, "two\nlines"), (8, "q")]
    assert [(p.row, p.field, p.reason) for p in read.problems] == [
        (2, "record", Reason.CELL_COUNT),
        (3, "record", Reason.CELL_COUNT),
        (4, "chosen", Reason.NOT_UTF8),
        (5, "record", Reason.NOT_CSV),
        (6, "chosen", Reason.MESSAGES_AS_TEXT),
        (7, "chosen", Reason.EMPTY),
        (9, "record", Reason.NOT_CSV),
    ]
    assert read.problems[0].text.startswith("4 cells, header 3: ['p', 'one cell too'")
    assert r"'caf\xe9'" in read.problems[2].text


def test_csv_cells_are_messages_only_if_they_look_like_messages(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(
        'prompt,chosen,rejected\np,"[{""a"": 1}]","[2]"\nq,"[{""role"": ""user""}]","[{""content"": ""x""}]"\n'
    )
    read = load_preferences(path, on_bad_rows="skip")
    assert (read.rows[0].chosen, read.rows[0].rejected) == ('[{"a": 1}]', "[2]")
    assert [(p.field, p.reason) for p in read.problems] == [
        ("chosen[0]", Reason.NO_CONTENT),
        ("rejected[0]", Reason.NO_ROLE),
    ]


TURNS = [{"weight": 1, "content": "It's {here}", "role": "user"}, {"content": "a", "name": None, "role": "assistant"}]
SAYS_MESSAGES = [
    json.dumps(TURNS),
    json.dumps(TURNS, indent=2),
    json.dumps(json.dumps(TURNS)),
    str(TURNS),
    str(tuple(TURNS)),
    json.dumps(TURNS[1]),
    str(TURNS[1]),
    str([{"value": "q", "from": "human"}]),
    str([{"role": "narrator", "content": "a"}]),
    "[" + "\n ".join(map(str, TURNS)) + "]",  # numpy leaves out the commas
    f"array([{TURNS[1]}], dtype=object)",
    json.dumps(TURNS)[:-9],  # a cell that was cut
    "{'role': 'user', 'content': 'it's'}",
    "ChatCompletionMessage(content='Hello', refusal=None, role='assistant')",
]
SAYS_SOMETHING_ELSE = [
    '{"role": "engineer", "content": "pay"}',
    '{"messages": [{"role": "user", "content": "a request as an answer"}]}',
    'Write [{"role": "user", "content": "x"}] there.',
    '[{"title": "a", "content": "b"}]',
    '[{"id": 1, "found": {"role": "user", "content": "x"}}]',
    "{% for m in messages %}{{ m['role'] }}{% endfor %}",
    "[1, 2]",
    "{",
]


@pytest.mark.parametrize("field", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize("text", SAYS_MESSAGES)
def test_messages_stored_as_text_are_refused_in_any_form(text: str, field: str) -> None:
    rows = [
        {"prompt": "p", "chosen": "c", "rejected": "r"},
        {"prompt": "q", "chosen": "c", "rejected": "r", field: text},
    ]
    read = preferences_from_dataset(rows, on_bad_rows="skip")
    assert [(p.row, p.field, p.reason) for p in read.problems] == [(2, field, Reason.MESSAGES_AS_TEXT)]


@pytest.mark.parametrize("text", SAYS_SOMETHING_ELSE)
def test_texts_about_messages_are_texts(text: str) -> None:
    (row,) = preferences_from_dataset([{"prompt": "p", "chosen": text, "rejected": "r"}]).rows
    assert row.chosen == text


def test_one_message_as_text_in_csv_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text('prompt,chosen,rejected\np,"{""content"": ""a"", ""role"": ""assistant""}",r\nq,c,r\n')
    read = load_preferences(path, on_bad_rows="skip")
    assert [(p.row, p.field, p.reason) for p in read.problems] == [(1, "chosen", Reason.MESSAGES_AS_TEXT)]


def test_long_conversations_are_told_by_their_first_roles() -> None:
    with pytest.raises(BadPreferences) as caught:
        preferences_from_dataset([row(prompt=[U, A] * 4), row(prompt=[U, A] * 5)])
    ten, eight = (", ".join(["user", "assistant"] * 4) + end for end in (", …", ""))
    assert [p.text for p in caught.value.problems] == [f"roles: {eight}", f"roles: {ten}"]


def test_broken_rows_in_a_json_list_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text('[{"prompt": "p", "chosen": "c", "rejected": "r"}, 3, {"prompt": "p", "prompt": "q"}]')
    read = load_preferences(path, on_bad_rows="skip")
    assert [(p.row, p.field, p.reason) for p in read.problems] == [
        (2, "row", Reason.NOT_OBJECT),
        (3, "prompt", Reason.REPEATED_KEY),
    ]


def test_a_file_of_two_forms_keeps_the_more_frequent_one() -> None:
    plain = [{"prompt": f"p{i}", "chosen": "c", "rejected": "r"} for i in range(3)]
    read = preferences_from_dataset([row(), *plain], on_bad_rows="skip")
    assert [r.row for r in read.rows] == [2, 3, 4]
    assert [(p.row, p.reason) for p in read.problems] == [(1, Reason.MIXED_FILE)]


def test_the_error_survives_pickling() -> None:
    with pytest.raises(BadPreferences) as caught:
        preferences_from_dataset([row(chosen=None), row()])
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.problems) == (str(caught.value), caught.value.problems)


def test_an_unknown_way_to_treat_bad_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="on_bad_rows is 'warn'"):
        preferences_from_dataset([row()], on_bad_rows="warn")  # type: ignore[arg-type]
