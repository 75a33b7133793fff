"""Sources that cannot be read as a whole say what came, what was expected and what to do; rows are written whole."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdpo.preferences import (
    RowProblem,
    UnreadablePreferences,
    load_preferences,
    preferences_from_dataset,
    write_preferences,
)
from tdpo.preferences.rows import shown

ROW = {"prompt": "p", "chosen": "c", "rejected": "r"}


def refused(rows: Any) -> str:
    with pytest.raises(UnreadablePreferences) as caught:
        preferences_from_dataset(rows, source="mine")
    message = str(caught.value)
    assert message.startswith("mine: ")
    return message


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("prompt", "completion", "label"), "looks like unpaired preferences"),
        (("prompt", "completion"), "looks like prompts with one completion"),
        (("prompt", "completions", "labels"), "looks like stepwise supervision"),
        (("prompt", "completions"), "looks like several completions a prompt"),
        (("messages",), "looks like conversations (supervised"),
        (("conversations", "id"), "ShareGPT"),
        (("instruction", "input", "output"), "looks like instructions"),
        (("question", "winner", "a", "b"), "winner's text into 'chosen'"),
        (("text",), "language modelling"),
        (("prompt", "chosen_score", "rejected_score"), "scores without the texts"),
        (("prompt",), "`tdpo pairs`"),
        (("prompt_ids", "chosen_ids", "rejected_ids"), "already tokenised"),
        (("prompt", "choosen", "rejected"), "no row has 'chosen'"),
        (("prompt", "choosen", "rejected"), "Rename 'choosen' to 'chosen'"),
        (
            ("Prompt", "Chosen", " rejected"),
            "'Prompt' to 'prompt' and 'Chosen' to 'chosen' and ' rejected' to 'rejected'",
        ),
    ],
)
def test_other_formats_are_recognised(columns: tuple[str, ...], expected: str) -> None:
    message = refused([dict.fromkeys(columns, "x")])
    assert expected in message
    assert "Expected are the columns 'chosen' and 'rejected'" in message


def test_wide_tables_are_shown_by_their_first_columns() -> None:
    assert "'c19'." in refused([dict.fromkeys([f"c{i}" for i in range(20)], "x")])
    assert "'c19', …." in refused([dict.fromkeys([f"c{i}" for i in range(21)], "x")])


def test_a_prompt_under_another_name_is_not_guessed() -> None:
    rows = [{"chosen": "Yes it is", "rejected": "Yes but", "promt": "Q"}]
    assert "'promt' looks like it. Rename it to 'prompt'" in refused(rows)
    assert "'question' looks like it" in refused([{"chosen": "Yes it is", "rejected": "Yes but", "question": "Q?"}])
    # Where the responses contain the question, the prompt is implicit and the column is only kept.
    kept = preferences_from_dataset([{"chosen": "Q? yes", "rejected": "Q? no", "question": "Q?", "prompt_id": 1}])
    assert kept.rows[0].prompt == "Q?" and kept.rows[0].extra == {"question": "Q?", "prompt_id": 1}


ASKED = [
    {"system": "", "question": f"How many legs has animal {i}?", "chosen": f"The animal {i} has four legs.",
     "rejected": f"The answer is unknown for {i}."} for i in range(6)
]  # fmt: skip
ODD = {"system": "", "question": "hello", "chosen": "hello there, how are you", "rejected": "hello you, go away"}
TASK = {
    "instruction": "Translate to French",
    "input": "house",
    "system": "You translate.",
    "chosen": "a",
    "rejected": "b",
}


@pytest.mark.parametrize("odd", [[], [ODD], [ODD, ODD | {"question": "hello "}]])
@pytest.mark.parametrize("mode", ["error", "skip"])
def test_a_row_that_quotes_its_question_does_not_hide_the_question(odd: list[Any], mode: Any) -> None:
    with pytest.raises(UnreadablePreferences) as caught:
        preferences_from_dataset([*odd, *ASKED], on_bad_rows=mode)
    message = str(caught.value)
    assert "'question' looks like it. Rename it to 'prompt'" in message and "'system'" not in message
    assert f"in 6 rows, first in row {1 + len(odd)}" in message and "skip" not in message


def test_renaming_one_column_does_not_drop_the_others() -> None:
    assert "'instruction', 'input' and 'system' look like parts of it. Write one column 'prompt'" in refused([TASK])
    renamed = [{"prompt" if name == "instruction" else name: value for name, value in TASK.items()}]
    message = refused(renamed)
    assert "the columns 'input' and 'system' look like part of the prompt, but their text is not in" in message
    assert "(in row 1)" in message and "a system text is a turn of its own" in message
    whole = [{**renamed[0], "prompt": "You translate.\n\nTranslate to French:\n house"}]
    assert preferences_from_dataset(whole).rows[0].extra == {"input": "house", "system": "You translate."}
    turns = [{"role": "system", "content": "You translate."}, {"role": "user", "content": "Translate to French: house"}]
    answers = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    assert len(preferences_from_dataset([{**TASK, "prompt": turns, **answers}])) == 1


@pytest.mark.parametrize(
    "name",
    ["Question", "SYSTEM", "system_prompt", "userInput", "Context", "history", "input-text", "Prompts", "queries?",
     "conversation", "problem", "passage", "article", "text"],
)  # fmt: skip
def test_names_of_parts_of_a_prompt(name: str) -> None:
    name = name.replace("queries?", "query")
    for value in ("an unread text", [["earlier", "answer"]], [{"from": "human", "value": "earlier"}]):
        assert f"'{name}' looks like part of the prompt" in refused([{**ROW, name: value}])
        # What is empty, or no text, is no part of a prompt.
    for value in ("", " ", [], "[]", None, 7, [{"role": "assistant", "content": "x"}]):
        assert len(preferences_from_dataset([{**ROW, name: value}])) == 1


@pytest.mark.parametrize("name", ["prompt_id", "question_type", "input_tokens", "context_length", "source", "model",
                                  "system_model", "rationale", "score_chosen", "messageId"])  # fmt: skip
def test_names_of_other_things_are_only_kept(name: str) -> None:
    assert preferences_from_dataset([{**ROW, name: "anything"}]).rows[0].extra == {name: "anything"}


def test_whole_conversations_beside_the_prompt_are_no_part_that_is_missing() -> None:
    """As ultrafeedback_binarized: the prompt as text, conversations that repeat it, and the chosen one once more."""
    asked, *answers = (
        {"role": role, "content": c} for role, c in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
    )
    row = {
        "prompt": "q",
        "chosen": [asked, answers[0]],
        "rejected": [asked, answers[1]],
        "messages": [asked, answers[0]],
    }
    assert len(preferences_from_dataset([row])) == 1


def test_parts_of_prompts_are_named_in_every_source(tmp_path: Path) -> None:
    import datasets

    write_preferences(tmp_path / "a.jsonl", [TASK])
    dataset = datasets.Dataset.from_list([TASK])
    dataset.to_parquet(tmp_path / "a.parquet")
    dataset.to_csv(tmp_path / "a.csv")
    dataset.save_to_disk(tmp_path / "saved")
    for source in ("a.jsonl", "a.parquet", "a.csv", "saved"):
        with pytest.raises(UnreadablePreferences, match="'instruction', 'input' and 'system' look like parts"):
            load_preferences(tmp_path / source)
    assert "'instruction', 'input' and 'system' look like parts" in refused(dataset)


@pytest.mark.parametrize("mode", ["error", "skip"])
def test_answers_alone_are_not_split_into_prompts(mode: Any) -> None:
    bare = [{side: row[side] for side in ("chosen", "rejected")} for row in ASKED]
    other = [{"chosen": f"Yes {i}", "rejected": f"No {i}"} for i in range(3)]
    for rows, why in (
        (bare, "in 6 of 6 rows what they share ends inside a word (row 1: 'The an' before 'imal 0 has four legs.')"),
        (bare + other, "in 3 of 9 rows (first in row 7) chosen and rejected share no beginning"),
    ):
        with pytest.raises(UnreadablePreferences) as caught:
            preferences_from_dataset(rows, on_bad_rows=mode)
        assert why in str(caught.value) and "Add a column 'prompt'" in str(caught.value)


def test_prompts_within_the_responses_are_still_found() -> None:
    rows = [{"chosen": f"Q: {i}?\nA: yes", "rejected": f"Q: {i}?\nA: no"} for i in range(9)]
    rows += [{"chosen": f"Q: {i}?\nA: good day", "rejected": f"Q: {i}?\nA: goodbye"} for i in range(9, 13)]
    assert [row.prompt[-3:] for row in preferences_from_dataset(rows).rows] == ["\nA:"] * 9 + ["ood"] * 4
    chinese = [{"chosen": f"问题{i}答案是", "rejected": f"问题{i}答复否"} for i in range(6)]
    assert len(preferences_from_dataset(chinese)) == 6


@pytest.mark.parametrize(
    "columns", [("prompts", "completions"), ("prompt", "responses", "scores"), ("Prompts", "Completions"), ("answers",)]
)
def test_lists_of_responses_are_no_misspelt_pairs(columns: tuple[str, ...]) -> None:
    message = refused([{name: ["x"] for name in columns}])
    assert " a prompt. Write one row a pair: 'prompt' with its text" in message and "Rename" not in message


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz"])
def test_a_file_that_expands_without_end_is_refused_soon(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b" " * (90 << 20)))
    with pytest.raises(UnreadablePreferences, match=r"the file of \d+ KiB expands more than 200-fold") as caught:
        load_preferences(tmp_path / name)
    assert "set TDPO_MAX_EXPANDED_MIB to the MiB that it may expand to" in str(caught.value)
    at = float(str(caught.value).partition(" MiB)")[0].rpartition(" to ")[2])
    assert 64 <= at < 66, "where it stops does not depend on where the file ends"


def test_the_limit_of_expansion_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**ROW, "prompt": f"{i} " + "p" * 10_000} for i in range(300)]  # 3 MB that shrink to a few kB
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert len(load_preferences(path)) == 300
    monkeypatch.setenv("TDPO_MAX_EXPANDED_MIB", "2")
    with pytest.raises(UnreadablePreferences, match=r"expands to more than 2 MiB.*set TDPO_MAX_EXPANDED_MIB"):
        load_preferences(path)
    monkeypatch.setenv("TDPO_MAX_EXPANDED_MIB", "4")
    assert len(load_preferences(path)) == 300
    monkeypatch.setenv("TDPO_MAX_EXPANDED_MIB", "lots")
    with pytest.raises(UnreadablePreferences, match="TDPO_MAX_EXPANDED_MIB is 'lots'; it must be a number of MiB"):
        load_preferences(path)


def test_a_parquet_file_that_expands_without_end_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.array(["p" * 200_000]).dictionary_encode()
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int32()), text.dictionary)
    pq.write_table(pa.table(dict.fromkeys(ROW, repeated)), tmp_path / "a.parquet", store_schema=False)
    assert (tmp_path / "a.parquet").stat().st_size < 1_000_000
    with pytest.raises(UnreadablePreferences, match=r"a\.parquet: the file of .* expands more than 200-fold"):
        load_preferences(tmp_path / "a.parquet")


def test_values_that_are_no_dataset() -> None:
    assert "holds several datasets ('train', 'test')" in refused({"train": [ROW], "test": [ROW]})
    assert "not str" in refused("pairs")
    assert "not int" in refused(3)
    assert "there are no rows" in refused([])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.jsonl", b"", "there are no rows in it"),
        ("empty.csv", b"prompt,chosen,rejected\n", "there are no rows in it"),
        ("empty.json", b"[]", "there are no rows in it"),
        ("blank.json", b" \n", "there are no rows in it"),
        ("utf16.jsonl", json.dumps(ROW).encode("utf-16"), "the file is UTF-16. Save it as UTF-8"),
        ("cut.jsonl.gz", gzip.compress(json.dumps(ROW).encode() * 99, mtime=0)[:-9], "damaged or cut short"),
        ("not.jsonl.gz", json.dumps(ROW).encode(), "damaged or cut short"),
        ("cut.json", b'[{"prompt": "p"', "not valid JSON (Expecting ',' delimiter: line 1 column 16"),
        ("latin.json", b'[\n"caf\xe9"]', "line 2 is not valid UTF-8"),
        ("number.json", b"3", "the file holds int: 3. Expected is a list of rows"),
        ("keys.json", b'{"a": 1, "b": 2}', "an object with the keys 'a', 'b'"),
        ("ragged.json", b'{"chosen": ["a"], "rejected": []}', "differ in length: {'chosen': 1, 'rejected': 0}"),
        ("twice.csv", b"prompt,chosen,chosen\n", "the header names 'chosen' twice"),
        ("not.parquet", b"PAR1 but not really", "not readable as Parquet"),
        ("pairs.xlsx", b"PK", "files of this kind (.xlsx) are not read. Known are .jsonl"),
        ("pairs", b"", "files of this kind (no suffix) are not read"),
    ],
)
def test_files_that_cannot_be_read(name: str, content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UnreadablePreferences) as caught:
        load_preferences(path)
    assert expected in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_a_json_list_under_the_name_of_json_lines_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps([ROW], indent=1))
    with pytest.raises(ValueError, match="Does the content fit the file's name"):
        load_preferences(path)


def test_a_single_row_in_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    turns = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    for row in (ROW, {"prompt": [{"role": "user", "content": "p"}], **turns}):
        path.write_text(json.dumps(row, indent=1))
        assert load_preferences(path).rows[0].chosen == row["chosen"]


def test_a_path_that_does_not_exist_names_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_preferences(tmp_path / "pairs_train.jsonl", [ROW])
    with pytest.raises(FileNotFoundError, match=r"did you mean '.*pairs_train\.jsonl'"):
        load_preferences(tmp_path / "pair_train.jsonl")
    with pytest.raises(FileNotFoundError, match=r"no folder '.*nowhere'"):
        load_preferences(tmp_path / "nowhere" / "pairs.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"did you mean 'pairs_train\.jsonl'"):
        load_preferences("pairs_trian.jsonl")


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_preferences(tmp_path / "pairs.jsonl", [ROW])
    assert load_preferences("~/pairs.jsonl").rows[0].prompt == "p"


def test_folders_that_are_no_saved_dataset(tmp_path: Path) -> None:
    write_preferences(tmp_path / "pairs.jsonl", [ROW])
    with pytest.raises(UnreadablePreferences, match=r"not saved by `datasets`.*It contains pairs\.jsonl: name one"):
        load_preferences(tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(UnreadablePreferences, match="the saved dataset cannot be loaded"):
        load_preferences(tmp_path)


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    DatasetDict({"train_prefs": Dataset.from_list([ROW])}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UnreadablePreferences, match=r"no split 'train_pref'; there are 'train_prefs'. Did you mean"):
        load_preferences(tmp_path / "saved", split="train_pref")


def test_a_hub_name_goes_to_load_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    calls = []

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return datasets.Dataset.from_list([ROW])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_preferences("owner/name", split="test").rows[0].source == "owner/name"
    load_preferences("owner/name:helpful-base")
    assert calls == [
        (("owner/name", None), {"split": "test", "trust_remote_code": False}),
        (("owner/name", "helpful-base"), {"split": "train", "trust_remote_code": False}),
    ]


def test_an_unreachable_hub_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ultrafeedback").mkdir()
    with pytest.raises(UnreadablePreferences) as caught:  # the real function, offline
        load_preferences("ultrafeedbak")
    message = str(caught.value)
    assert "no such file or folder; did you mean 'ultrafeedback'?" in message
    assert "HF_HUB_OFFLINE" in message and 'load_dataset("ultrafeedbak").save_to_disk("folder")' in message


def test_an_essay_of_a_library_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    for text, expected in (("why " * 50, "why why\n"), ("why " * 99, "why why …\n")):
        monkeypatch.setattr(datasets, "load_dataset", lambda *args, text=text, **kwargs: fail(text))
        with pytest.raises(UnreadablePreferences) as caught:
            load_preferences("owner/name")
        assert expected in str(caught.value)


def fail(text: str) -> None:
    raise ConnectionError(text)


def test_importing_reads_no_heavy_library() -> None:
    code = "import sys, tdpo.preferences; print([m for m in ('datasets', 'pyarrow', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_written_rows_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "pairs.jsonl"
    rows = [{**ROW, "prompt": f"naïve \u2028 {i}", "chosen_reward": i / 3, "chosen_finished": False} for i in range(3)]
    assert write_preferences(path, iter(rows)) == 3
    read = load_preferences(path).rows
    assert [r.prompt for r in read] == [row["prompt"] for row in rows]
    assert [r.extra["chosen_reward"] for r in read] == [0, 1 / 3, 2 / 3]
    assert not any(r.chosen_finished for r in read)
    assert [entry.name for entry in path.parent.iterdir()] == ["pairs.jsonl"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), object()])
def test_a_failed_writing_leaves_the_old_file(tmp_path: Path, bad: Any) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("old")
    with pytest.raises((ValueError, TypeError)):
        write_preferences(path, [ROW, {**ROW, "chosen_reward": bad}])
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_a_problem_reads_as_one_line() -> None:
    assert str(RowProblem("pairs.jsonl", 17, "rejected", "is empty", "''")) == "pairs.jsonl:17: rejected: is empty ('')"
    assert str(RowProblem("pairs.jsonl", 3, "chosen", "is null", "")) == "pairs.jsonl:3: chosen: is null"


def test_shown_by_hand() -> None:
    assert shown("a\tb\n\x1b[31m\u202e") == r"'a\tb\n\x1b[31m\u202e'"
    assert shown("x" * 80) == "'" + "x" * 80 + "'"
    assert shown("x" * 81) == "'" + "x" * 80 + "…'"
    assert shown("a" * 100 + "!" + "b" * 100, near=100) == "'…" + "a" * 40 + "!" + "b" * 39 + "…'"
    assert shown([1, "a"]) == "[1, 'a']"


@given(st.text(), st.integers(min_value=0, max_value=500))
def test_shown_is_short_and_printable(text: str, near: int) -> None:
    line = shown(text, min(near, len(text)))
    assert line.isprintable() and len(line) <= 84
