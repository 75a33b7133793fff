"""Every storage format gives the same rows, and every row format is read as TRL 1.16 reads it."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tdpo.preferences import load_preferences, preferences_from_dataset, split_prompt

Row = dict[str, Any]
COUNT = 2000
AWKWARD = [
    'say "no"',
    "two\nlines",
    "comma, semicolon; tab\t",
    "naïve 漢字 🙂",
    "[1, 2]",
    "line\u2028separator",
    "a\r\nb",
]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def plain_rows() -> list[Row]:
    return [
        {
            "prompt": f"Question {i}: {AWKWARD[i % len(AWKWARD)]}?",
            "chosen": f" yes {AWKWARD[i % 5]} {i}",
            "rejected": f" no {AWKWARD[(i + 1) % 5]} {i}",
        }
        for i in range(COUNT)
    ]


def conversational_rows() -> list[Row]:
    rows = []
    for i, row in enumerate(plain_rows()):
        system = [{"role": "system", "content": "Be brief."}] if i % 3 == 0 else []
        earlier = [user("Hello"), assistant("Hi, \n what now?")] if i % 2 == 0 else []
        prompt = [*system, *earlier, user(row["prompt"])]
        rows.append({"prompt": prompt, "chosen": [assistant(row["chosen"])], "rejected": [assistant(row["rejected"])]})
    return rows


def implicit(rows: list[Row]) -> list[Row]:
    return [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in rows]


def with_text_prompt(rows: list[Row]) -> list[Row]:
    """As ultrafeedback_binarized: the last user turn as text beside whole conversations."""
    return [{"prompt": r["prompt"][-1]["content"], **i} for r, i in zip(rows, implicit(rows), strict=True)]


def write_jsonl(rows: list[Row], folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_windows_jsonl(rows: list[Row], folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    lines = [json.dumps(row).encode() + b"\r\n" for row in rows]
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(lines))
    return path


def write_jsonl_gz(rows: list[Row], folder: Path) -> Path:
    path = folder / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress(write_jsonl(rows, folder).read_bytes()))
    return path


def write_json(shape: Callable[[list[Row]], Any]) -> Callable[[list[Row], Path], Path]:
    def write(rows: list[Row], folder: Path) -> Path:
        path = folder / "pairs.json"
        path.write_text(json.dumps(shape(rows), indent=1), encoding="utf-8-sig")
        return path

    return write


def columns(rows: list[Row]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def write_lines_as_json(rows: list[Row], folder: Path) -> Path:
    return write_jsonl(rows, folder).rename(folder / "pairs.json")


def write_csv(suffix: str, delimiter: str) -> Callable[[list[Row], Path], Path]:
    def write(rows: list[Row], folder: Path) -> Path:
        path = folder / f"pairs{suffix}"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            for row in rows:
                writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()})
        return path

    return write


def write_parquet(rows: list[Row], folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), folder / "pairs.parquet", row_group_size=300)
    return folder / "pairs.parquet"


def write_dataset(rows: list[Row], folder: Path) -> Path:
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def write_dataset_dict(rows: list[Row], folder: Path) -> Path:
    from datasets import Dataset, DatasetDict

    splits = {"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:1])}
    DatasetDict(splits).save_to_disk(str(folder / "splits"))
    return folder / "splits"


STORES: dict[str, Callable[[list[Row], Path], Path]] = {
    "jsonl": write_jsonl,
    "jsonl-windows-bom": write_windows_jsonl,
    "jsonl.gz": write_jsonl_gz,
    "json-list": write_json(lambda rows: rows),
    "json-data": write_json(lambda rows: {"version": 1, "data": rows}),
    "json-columns": write_json(columns),
    "json-lines": write_lines_as_json,
    "csv": write_csv(".csv", ","),
    "csv-semicolon": write_csv(".csv", ";"),
    "tsv": write_csv(".tsv", "\t"),
    "parquet": write_parquet,
    "dataset": write_dataset,
    "dataset-dict": write_dataset_dict,
}


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("rows", [plain_rows(), conversational_rows()], ids=["plain", "conversational"])
def test_every_storage_format_gives_the_rows_that_were_written(store: str, rows: list[Row], tmp_path: Path) -> None:
    path = STORES[store](rows, tmp_path)
    read = load_preferences(path)
    assert [{"prompt": r.prompt, "chosen": r.chosen, "rejected": r.rejected} for r in read.rows] == rows
    assert [r.row for r in read.rows] == list(range(1, COUNT + 1))
    assert {r.source for r in read.rows} == {str(path)} == {read.source}
    assert read.problems == [] and len(read) == COUNT


def test_split_chooses_among_the_saved_ones(tmp_path: Path) -> None:
    assert len(load_preferences(write_dataset_dict(plain_rows()[:9], tmp_path), split="test")) == 1


@pytest.mark.parametrize("rows", [plain_rows(), conversational_rows()], ids=["plain", "conversational"])
def test_implicit_prompts_are_split_where_trl_splits_them(rows: list[Row], tmp_path: Path) -> None:
    from trl import extract_prompt

    for made in (implicit(rows), *([with_text_prompt(rows)] if isinstance(rows[0]["prompt"], list) else [])):
        read = load_preferences(write_jsonl(made, tmp_path)).rows
        expected = [extract_prompt({"chosen": r["chosen"], "rejected": r["rejected"]}) for r in made]
        assert [{"prompt": r.prompt, "chosen": r.chosen, "rejected": r.rejected} for r in read] == expected


def test_implicit_prompts_by_hand() -> None:
    assert split_prompt("The sky is blue", "The sky is green") == ("The sky is", " blue", " green")
    assert split_prompt("2+2=4", "2+2=5") == ("2+2=", "4", "5")
    # Shared first words, and even a shared first letter, count as prompt: it cannot be told apart.
    assert split_prompt("Q: hi A: good day", "Q: hi A: goodbye") == ("Q: hi A: good", " day", "bye")
    # Only one space goes back to the responses.
    assert split_prompt("a  b", "a  c") == ("a ", " b", " c")
    assert split_prompt("xyz ", "abc") == ("", "xyz ", "abc")
    assert split_prompt([user("q"), assistant("a")], [user("q"), assistant("b")]) == (
        [user("q")],
        [assistant("a")],
        [assistant("b")],
    )


texts = st.text(alphabet="ab \n", min_size=1, max_size=12)
turns = st.lists(st.sampled_from([user("x"), user("y"), assistant("x"), assistant("y")]), min_size=1, max_size=5)


@given(prefix=st.one_of(st.just(""), texts), chosen=texts, rejected=texts)
@example(prefix="a ", chosen="a", rejected="b")
@example(prefix="", chosen="ab", rejected="abb")
@settings(max_examples=500, deadline=None)
def test_split_prompt_agrees_with_trl_on_text(prefix: str, chosen: str, rejected: str) -> None:
    from trl import extract_prompt

    chosen, rejected = prefix + chosen, prefix + rejected
    # With no first character in common TRL looks at the last one of `chosen`, and loses text if that is a space.
    assume(chosen[0] == rejected[0] or chosen[-1] != " ")
    prompt, chosen_response, rejected_response = split_prompt(chosen, rejected)
    expected = extract_prompt({"chosen": chosen, "rejected": rejected})
    assert {"prompt": prompt, "chosen": chosen_response, "rejected": rejected_response} == expected


@given(prefix=st.one_of(st.just([]), turns), chosen=turns, rejected=turns)
@settings(max_examples=300, deadline=None)
def test_split_prompt_agrees_with_trl_on_conversations(prefix: list, chosen: list, rejected: list) -> None:
    from trl import extract_prompt

    chosen, rejected = prefix + chosen, prefix + rejected
    prompt, chosen_response, rejected_response = split_prompt(chosen, rejected)
    expected = extract_prompt({"chosen": chosen, "rejected": rejected})
    assert {"prompt": prompt, "chosen": chosen_response, "rejected": rejected_response} == expected


@given(prompt=st.text(), chosen=st.text(), rejected=st.text())
@settings(max_examples=300, deadline=None)
def test_the_split_loses_and_adds_nothing(prompt: str, chosen: str, rejected: str) -> None:
    split = split_prompt(prompt + chosen, prompt + rejected)
    assert split.prompt + split.chosen == prompt + chosen
    assert split.prompt + split.rejected == prompt + rejected


def test_text_prompt_beside_bare_answers_becomes_the_user_turn() -> None:
    row = {"prompt": "2+2?", "chosen": [assistant("4")], "rejected": [assistant("5")]}
    assert preferences_from_dataset([row]).rows[0].prompt == [user("2+2?")]


def test_a_conversation_that_goes_on_is_preferred_as_trl_reads_it() -> None:
    short = [user("hi"), assistant("hello")]
    row = preferences_from_dataset([{"chosen": [*short, user("and?"), assistant("bye")], "rejected": short}]).rows[0]
    assert row.prompt == [user("hi")] and row.rejected == [assistant("hello")] and len(row.chosen) == 3


def test_tool_calls_are_kept_and_nulls_of_arrow_are_not() -> None:
    from datasets import Dataset

    tools = [{"type": "function", "function": {"name": "now"}}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "now"}}]}
    prompt = [user("What time is it?")]
    chosen = [call, {"role": "tool", "name": "now", "content": ""}, assistant("Noon.")]
    row = {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": [assistant("Dunno.")],
        "tools": json.dumps(tools),
        "chat_template_kwargs": {"enable_thinking": False},
    }
    other = {**row, "tools": None, "chat_template_kwargs": {"date": "today"}, "chosen": [assistant("One.")]}
    read = preferences_from_dataset(Dataset.from_list([row, other])).rows
    assert read[0].chosen == [{**call, "content": ""}, {"role": "tool", "name": "now", "content": ""}, chosen[2]]
    assert read[0].prompt == prompt
    assert read[0].extra == {"tools": tools, "chat_template_kwargs": {"enable_thinking": False}}
    assert read[1].extra == {"chat_template_kwargs": {"date": "today"}}


def test_csv_columns_get_their_types_back(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    kwargs = json.dumps({"enable_thinking": True}).replace('"', '""')
    path.write_text(
        "prompt,chosen,rejected,chosen_finished,rejected_finished,chosen_reward,chat_template_kwargs,id\n"
        f'"[{{""role"": ""user"", ""content"": ""a""}}]","[{{""role"": ""assistant"", ""content"": ""b""}}]",'
        f'"[{{""role"": ""assistant"", ""content"": ""c""}}]",False,true,0.25,"{kwargs}",007\n\n'
    )
    (row,) = load_preferences(path).rows
    assert (row.prompt, row.chosen, row.rejected) == ([user("a")], [assistant("b")], [assistant("c")])
    assert (row.chosen_finished, row.rejected_finished) == (False, True)
    assert row.extra == {"chosen_reward": 0.25, "chat_template_kwargs": {"enable_thinking": True}, "id": "007"}


def test_csv_cells_may_exceed_the_limit_of_the_csv_module(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    long = "word " * 50_000
    path = write_csv(".csv", ",")([{"prompt": "p", "chosen": long, "rejected": "r"}], tmp_path)
    assert load_preferences(path).rows[0].chosen == long
    assert csv.field_size_limit() == before


def test_blank_lines_are_passed_over_but_counted(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"prompt": prompt, "chosen": "c", "rejected": "r"}) for prompt in ("p", "q")]
    path.write_text(f"\n{lines[0]}\n   \n{lines[1]}")
    assert [(row.prompt, row.row) for row in load_preferences(path).rows] == [("p", 2), ("q", 4)]


def test_datasets_in_other_formats_are_read_as_text() -> None:
    from datasets import Dataset

    dataset = Dataset.from_list([{"prompt": "p", "chosen": "c", "rejected": "r", "chosen_reward": 0.5}])
    for form in (dataset.with_format("torch"), dataset.with_format("pandas"), dataset.to_iterable_dataset()):
        read = preferences_from_dataset(form, source="mine").rows[0]
        assert (read.prompt, read.source, read.extra) == ("p", "mine", {"chosen_reward": 0.5})
        assert type(read.extra["chosen_reward"]) is float
