"""Prompts from files, in every format and with every fault; functions by name."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tdpo.environments import FunctionError, Prompt, load_function, load_prompts, read_prompts
from tdpo.preferences import BadPreferences, Reason, UnreadablePreferences, load_preferences
from tdpo.rewards.functions import prompts_of

USER = {"role": "user", "content": "Say hello."}
ANSWER = {"role": "assistant", "content": "Hello."}
ROWS = [{"prompt": "How are you?", "mood": "good"}, {"prompt": "And you?", "mood": "bad"}]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def lines(*rows: Any, name: str = "p.jsonl") -> Path:
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return lines


def faults(path: Path) -> list[str]:
    with pytest.raises(BadPreferences) as caught:
        read_prompts(path)
    return [str(problem).removeprefix(f"{path}:") for problem in caught.value.problems]


# Formats


def save(folder: Path, kind: str) -> Path:
    import datasets

    path = folder / f"p.{kind}"
    columns = {name: [row[name] for row in ROWS] for name in ("prompt", "mood")}
    if kind == "json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    elif kind == "columns.json":
        path.write_text(json.dumps(columns), encoding="utf-8")
    elif kind == "csv":
        path.write_text("mood;prompt\ngood;How are you?\nbad;And you?\n", encoding="utf-8")
    elif kind == "parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(path)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    else:
        datasets.DatasetDict({"held": datasets.Dataset.from_list(ROWS)}).save_to_disk(path)
    return path


@pytest.mark.parametrize("kind", ["json", "columns.json", "csv", "parquet", "jsonl.gz", "saved"])
def test_every_format_gives_the_same_prompts(tmp_path: Path, kind: str) -> None:
    path = save(tmp_path, kind)
    found = read_prompts(path, split="held")
    assert found == [Prompt(f"p.{kind}:{n}", row["prompt"], {"mood": row["mood"]}) for n, row in enumerate(ROWS, 1)]


@pytest.mark.parametrize("name", ["P.JSONL", "p.ndjson", "p.NDJSON.gz", "p.Csv", "p.tsv.gz", "P.TSV", "p.json.gz"])
def test_the_case_of_a_suffix_and_compression_do_not_matter(tmp_path: Path, name: str) -> None:
    form = name.lower().removesuffix(".gz").rpartition(".")[2]
    text = {"json": json.dumps(ROWS), "csv": "mood,prompt\n", "tsv": "mood\tprompt\n"}.get(form, "")
    for row in ROWS if form != "json" else []:
        text += {"csv": "{mood},{prompt}", "tsv": "{mood}\t{prompt}"}.get(form, "").format(**row) or json.dumps(row)
        text += "\n"
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert [(p.prompt, p.columns) for p in read_prompts(tmp_path / name)] == [
        (row["prompt"], {"mood": row["mood"]}) for row in ROWS
    ]


MARKS = "one\u2028and\u2029the\x85same\x0band\x0cstill \x1c it"


def test_lines_end_at_newlines_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbf" + f"{MARKS}\r\n\n  \nsecond \n[1] third".encode())
    found = read_prompts(tmp_path / "p.txt")
    assert [(p.id, p.prompt) for p in found] == [("p.txt:1", MARKS), ("p.txt:4", "second "), ("p.txt:5", "[1] third")]
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": MARKS}, ensure_ascii=False) + "\n", encoding="utf-8")
    (tmp_path / "p.csv").write_text(f'prompt\n"{MARKS}"\n', encoding="utf-8")
    assert [read_prompts(tmp_path / name)[0].prompt for name in ("p.jsonl", "p.csv")] == [MARKS, MARKS]


def test_text_files_hold_prompts_and_nothing_else(tmp_path: Path, write: Write) -> None:
    (tmp_path / "p.txt").write_bytes(
        b'fine\n{"prompt": "a row"}\ncaf\xe9\n[{"content": "x", "role": "user"}]\n{"a": 1}\n'
    )
    read = load_prompts(tmp_path / "p.txt", on_bad_rows="skip")
    assert [p.prompt for p in read.prompts] == ["fine", '{"a": 1}']
    assert [(p.row, p.reason) for p in read.problems] == [
        (2, Reason.ROW_AS_TEXT), (3, Reason.NOT_UTF8), (4, Reason.MESSAGES_AS_TEXT),
    ]  # fmt: skip
    with pytest.raises(UnreadablePreferences, match=r"files of this kind \(.txt\) are not read"):
        load_preferences(tmp_path / "p.txt")


def test_messages_stay_messages_also_in_one_row_and_in_csv(write: Write, tmp_path: Path) -> None:
    assert read_prompts(write({"prompt": [USER]}))[0].prompt == [USER]
    single = tmp_path / "p.json"
    single.write_text(json.dumps({"prompt": [USER]}), encoding="utf-8")
    assert read_prompts(single) == [Prompt("p.json:1", [USER])]
    table = tmp_path / "p.csv"
    table.write_text('prompt\n"[{""role"": ""user"", ""content"": ""Say hello.""}]"\n', encoding="utf-8")
    assert read_prompts(table) == [Prompt("p.csv:1", [USER])]


def test_columns_of_preferences_are_columns_like_others(write: Write) -> None:
    (found,) = read_prompts(write({"prompt": "a", "chosen": "b", "rejected": "c", "answer": 7}))
    assert found.columns == {"chosen": "b", "rejected": "c", "answer": 7}


# Rows with faults


def test_all_faults_are_named_at_once_by_row_field_and_reason(write: Write) -> None:
    path = write(
        {"prompt": [USER]},
        {"promt": "x"},
        {"prompt": ""},
        {"prompt": " \n"},
        {"prompt": 7},
        {"prompt": None},
        {"prompt": []},
        {"prompt": [USER, ANSWER]},
        {"prompt": [{"role": "user"}]},
        {"prompt": [USER, {"role": "system", "content": "late"}]},
        "[1]",
        "{broken",
        {"prompt": '[{"role": "user", "content": "x"}]'},
        {"prompt": "plain among messages"},
        {"prompt": [USER]},
    )
    found = faults(path)
    assert [line.partition(": ")[0] for line in found] == [str(row) for row in range(2, 15)]
    for line, expected in zip(
        found,
        ["prompt: is missing (the row has promt; rename 'promt' to 'prompt')", "prompt: is empty",
         "prompt: holds nothing",
         "prompt: is neither text nor a list of messages (int: 7)", "prompt: is null", "prompt: is an empty list",
         "prompt: ends with an assistant turn (roles: user, assistant)", "prompt[0]: has no content",
         "prompt[1]: is a system turn after", "row: is not an object", "line: is not valid JSON",
         "prompt: is text that looks like a list of messages", "prompt: differs in form from most rows"],
        strict=True,
    ):  # fmt: skip
        assert expected in line


def test_bad_rows_can_be_skipped_and_are_counted(write: Write) -> None:
    path = write({"prompt": "a"}, {"prompt": ""}, {"prompt": "b"})
    found = load_prompts(path, on_bad_rows="skip")
    assert [prompt.id for prompt in found.prompts] == ["p.jsonl:1", "p.jsonl:3"] and len(found.problems) == 1
    with pytest.raises(BadPreferences, match=r'1 of 3 rows cannot be used(?s:.)*on_bad_rows="skip": 2 rows remain'):
        read_prompts(path)
    with pytest.raises(BadPreferences, match="No usable row is left"):
        read_prompts(write({"prompt": ""}), on_bad_rows="skip")
    with pytest.raises(ValueError, match="on_bad_rows is 'ignore'"):
        read_prompts(path, on_bad_rows="ignore")  # type: ignore[arg-type]


def test_tools_beside_plain_text_and_reserved_arguments_are_refused(write: Write) -> None:
    path = write(
        {"prompt": "plain", "tools": [{"name": "f"}]},
        {"prompt": "plain", "chat_template_kwargs": {"tokenize": True}},
        {"prompt": "plain", "tools": [], "chat_template_kwargs": {}},
    )
    assert [line.partition(" (")[0] for line in faults(path)] == [
        "1: tools: needs a chat template, but the row is plain text",
        "2: chat_template_kwargs.tokenize: sets an argument that the tokenisation sets itself",
    ]


# Rows in memory


def test_rows_in_memory_are_checked_as_those_of_files() -> None:
    import datasets

    calls = [{"name": "f", "arguments": '{"x": 1}'}, {"name": "g", "arguments": "{}"}]
    turns = [USER, {"role": "assistant", "content": "", "tool_calls": calls}, {"role": "tool", "content": "1"}]
    rows: list[Any] = [{"prompt": [USER], "answer": 1}, {"prompt": turns, "answer": 2}]
    for given in (rows, datasets.Dataset.from_list(rows)):
        found = prompts_of(given, "rows")
        assert [p.id for p in found] == ["rows:0", "rows:1"] and [p.columns["answer"] for p in found] == [1, 2]
        assert found[0].prompt == [USER]
        assert found[1].prompt[1]["tool_calls"] == [
            {"name": "f", "arguments": {"x": 1}},
            {"name": "g", "arguments": {}},
        ]
    made = Prompt("mine", "text", {"a": 1})
    assert prompts_of(["plain", made, [USER]], "rows") == [Prompt("rows:0", "plain"), made, Prompt("rows:2", [USER])]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "completions": "b"}], "the column 'completions' has the name of an argument"),
        ([{"prompt": "a"}, {"prompt": "b", "prompts": "b"}], "the column 'prompts'"),
        ([Prompt("mine", "a", {"completions": 1})], "the column 'completions' has the name of an argument"),
        ([{"prompt": "a", "context": "b"}], "the column 'context' looks like part of the prompt"),
        ([{"prompt": "a"}, {"prompt": str([ANSWER])}], "rows:1: prompt: is text that looks like a list of messages"),
        (["a", {"prompt": [{"role": "user", "content": ""}]}], r"rows:1: prompt\[0\].content: is empty"),
        ([{"prompt": [USER, ANSWER]}], "rows:0: prompt: ends with an assistant turn"),
    ],
)
def test_rows_in_memory_with_faults_are_refused_at_once(rows: list[Any], message: str) -> None:
    with pytest.raises((UnreadablePreferences, BadPreferences), match=message) as caught:
        prompts_of(rows, "rows")
    assert "on_bad_rows" not in str(caught.value), "rows in memory cannot be skipped"


# Sources with faults


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "there are no rows in it. Expected is a column 'prompt'"),
        ([{"question": "a"}], "no row has 'prompt'; its columns are 'question'.\n'question' looks like it: rename"),
        ([{"Prompt": "a"}], "'Prompt' looks like it"),
        ([{"messages": []}], "looks like conversations"),
        ([{"messages": [USER, ANSWER]}], "leave out their last answer and rename 'messages'"),
        (
            [{"instruction": "Translate.", "input": "house", "system": ""}],
            "'instruction' and 'input' look like parts of it. Write one column 'prompt'",
        ),
        (
            [{"prompt": "Translate: house", "input": "house"}, {"prompt": "Translate.", "input": "tree"}],
            "the column 'input' looks like part of the prompt, but its text is not in the column 'prompt' (in row 2)",
        ),
        ([{"prompt": [USER], "System": "Be brief."}], "the column 'System' looks like part of the prompt"),
        ([{"a": 1}], "its columns are 'a'.\nExpected is a column 'prompt'"),
        (
            [{"prompt": "a", "completions": ["b"]}],
            "'completions' has the name of an argument that every reward function",
        ),
        ([{"prompt": "a", "prompts": 1}], "'prompts' has the name of an argument"),
        ([{"prompt": "a", "prompts": "b"}], "'prompts' looks like part of the prompt"),
    ],
)
def test_a_source_that_is_none_says_why(write: Write, rows: list[Any], message: str) -> None:
    path = write(*rows)
    with pytest.raises(UnreadablePreferences) as caught:
        read_prompts(path)
    assert message in str(caught.value) and str(caught.value).startswith(str(path))


def test_a_source_of_another_kind_or_none_at_all(write: Write, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file or folder; did you mean .*p\.jsonl"):
        read_prompts(write(*ROWS).with_name("q.jsonl"))
    with pytest.raises(UnreadablePreferences, match="files of this kind"):
        read_prompts(write(*ROWS, name="p.md"))
    (tmp_path / "p.json").write_text('{"a": [1]}', encoding="utf-8")
    with pytest.raises(UnreadablePreferences, match=r"Expected is a list of rows.*Expected is a column 'prompt'"):
        read_prompts(tmp_path / "p.json")
    with pytest.raises(UnreadablePreferences, match=r"no split 'held_out'; there are 'held'. Did you mean 'held'"):
        read_prompts(save(tmp_path, "saved"), split="held_out")


# Functions


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from dataclasses import dataclass\n\nLIMIT = 3\n\n\ndef length(prompts, completions, **_):\n"
        "    return [min(len(c), LIMIT) for c in completions]\n\n\n@dataclass\nclass Judge:\n    x: int = 1\n\n"
        "    def __call__(self, completions, **_):\n        return [self.x for _ in completions]\n\n\njudge = Judge()\n"
    )
    Path("fails.py").write_text("import json\n\njson.loads('{')\n", encoding="utf-8")
    Path("needs.py").write_text("import no_such_package_here\n", encoding="utf-8")
    Path("typo.py").write_text("def f(:\n", encoding="utf-8")
    Path("leaves.py").write_text("raise SystemExit(3)\n", encoding="utf-8")
    return tmp_path


def test_a_function_is_found_by_file_and_by_module(functions: Path) -> None:
    length = load_function("mine.py:length")
    assert length(prompts=["p"], completions=["abcdef"]) == [3]
    assert load_function(f"{functions}/mine.py:length") is length, "a file is imported once"
    assert load_function("mine.py:judge")(completions=["a", "b"]) == [1, 1]
    assert load_function("tdpo.environments.sentiment:vader_compound").__name__ == "vader_compound"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mine.py", "expected file.py:name or package.module:name"),
        ("mine.py:", "expected file.py:name"),
        (":length", "expected file.py:name"),
        ("mine.py:a b", "expected file.py:name"),
        ("mein.py:length", r"no such file 'mein.py'; did you mean 'mine.py'.*\? \(looked in "),
        ("mine.py:lenght", r"mine.py has no 'lenght'; did you mean 'length'\?"),
        ("mine.py:zzz", "mine.py has no 'zzz'; it has dataclass, length"),
        ("mine.py:LIMIT", "'LIMIT' cannot be called: it is int 3"),
        ("mine.py:Judge", "'Judge' is a class; name a function, or an instance"),
        ("fails.py:f", r"fails.py:f: importing it raised JSONDecodeError: .* \(fails.py, line 3\)"),
        ("needs.py:f", r"importing it raised ModuleNotFoundError: .*no_such_package_here.* \(needs.py, line 1\)"),
        ("typo.py:f", r"importing it raised SyntaxError: .*typo.py, line 1"),
        ("leaves.py:f", "importing it raised SystemExit: 3"),
        ("mine:length", "there is no module 'mine' to import; the file mine.py is named mine.py:length"),
        ("tdpo.nothing:f", "there is no module 'tdpo.nothing' to import"),
        ("some/folder:f", "'some/folder' is neither a file ending in .py nor the name of a module"),
    ],
)
def test_a_function_that_cannot_be_had_says_why(functions: Path, spec: str, message: str) -> None:
    with pytest.raises(FunctionError, match=message):
        load_function(spec)
