"""The tables of a study: canonical order, canonical numbers, and nothing lost on the way."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.comparison_cases import cells_of, study
from tdpo.comparison.prompt_table import PromptTable, read_prompt_table
from tdpo.methods import ARMS
from tdpo.records import study_tables as tables
from tdpo.records.study_tables import CellKey, CurveRow, PromptRow, ResponseRow, ResultRow, TableError

CELL = CellKey("keywords", "dpo", "0.1", 1)


def test_cells_are_ordered_as_the_contract_says() -> None:
    ordered = [
        CellKey("a", "reference", "", 1),
        CellKey("a", "reference", "", 2),
        CellKey("a", "sft", "5e-05", 1),
        CellKey("a", "sft", "0.0001", 1),
        CellKey("a", "dpo", "0.3", 2),
        CellKey("a", "dpo", "3", 1),
        CellKey("a", "dpo", "10", 1),
        CellKey("a", "tdpo1", "0.1", 10),
        CellKey("a", "ppo_reverse", "0.1", 2),
        CellKey("a", "ppo_reverse", "0.1", 10),
        CellKey("a", "ppo_forward", "0.1", 1),
        CellKey("b", "reference", "", 1),
    ]
    shuffled = ordered[:]
    random.Random(0).shuffle(shuffled)
    assert sorted(shuffled) == ordered
    assert tuple(ARMS) == (
        "reference", "best_of", "temperature", "sft", "dpo", "dpo_forward", "dpo_reverse", "tdpo1", "tdpo2",
        "online_dpo_forward", "online_dpo_reverse", "online_tdpo2", "ppo_reverse", "ppo_reverse_exact", "ppo_forward",
        "rloo_reverse", "rloo_forward",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (("a", "kto", "0.1", 1), "'kto' is none of reference, best_of, temperature, sft"),
        (("a", "dpo", "", 1), "the reference, and only it, has no strength"),
        (("a", "reference", "0.1", 1), "the reference, and only it, has no strength"),
        (("a", "dpo", "weak", 1), "'weak' is not a number"),
    ],
)
def test_a_cell_that_cannot_be_is_refused(cell: tuple[str, str, str, int], message: str) -> None:
    with pytest.raises(TableError, match=message):
        CellKey(*cell)


def test_results_by_hand(tmp_path: Path) -> None:
    rows = [
        ResultRow("t", "dpo", "0.1", "all", "ead", 0.25, 0.1, np.float64(0.4)),
        ResultRow("t", "dpo", "0.1", 2, "ead", math.nan),
        ResultRow("t", "dpo", "0.1", 1, "ead", 1 / 3, None, None),
        ResultRow("t", "reference", "", 1, "ead", -0.0, -1e-20, 1e300),
    ]
    tables.write_results(tmp_path / "results.csv", rows)
    assert (tmp_path / "results.csv").read_bytes() == (
        b"task,arm,strength,seed,metric,value,low,high\n"
        b"t,reference,,1,ead,-0.0,-1e-20,1e+300\n"
        b"t,dpo,0.1,1,ead,0.3333333333333333,,\n"
        b"t,dpo,0.1,2,ead,,,\n"
        b"t,dpo,0.1,all,ead,0.25,0.1,0.4\n"
    )
    back = tables.read_results(tmp_path / "results.csv")
    assert back[1] == rows[2] and back[3] == rows[0] and back[2].value is None


def test_equal_studies_give_equal_bytes_whatever_the_order_of_their_rows(tmp_path: Path) -> None:
    rows = list(study(("b", "a"), ("reference", "dpo", "tdpo2"), prompts=12).rows())
    rows[5] = PromptRow(rows[5].cell, rows[5].prompt_id, rows[5].metric, None)
    written = []
    for number in range(3):
        random.Random(number).shuffle(rows)
        tables.write_prompts(tmp_path / "prompts.csv", PromptTable.from_rows(rows).rows())
        written.append((tmp_path / "prompts.csv").read_bytes())
    assert written[0] == written[1] == written[2]
    back = read_prompt_table(tmp_path / "prompts.csv")
    tables.write_prompts(tmp_path / "again.csv", back.rows())
    assert (tmp_path / "again.csv").read_bytes() == written[0]
    assert back.prompts == {"a": tuple(map(str, range(12))), "b": tuple(map(str, range(12)))}  # 2 before 10
    original = {(r.cell, r.prompt_id, r.metric): r.value for r in rows}
    assert {(r.cell, r.prompt_id, r.metric): r.value for r in back.rows()} == original


def test_clusters_and_kinds_of_strengths_come_back_and_older_tables_have_none(tmp_path: Path) -> None:
    rows = [PromptRow(CELL, prompt, "ead", 0.5, theme, "target") for prompt, theme in (("p", "birds"), ("q", "birds"))]
    table = PromptTable.from_rows(rows)
    assert table.clusters == {CELL.task: {"p": "birds", "q": "birds"}} and table.strength_kinds == {CELL.arm: "target"}
    tables.write_prompts(path := tmp_path / "prompts.csv", table.rows())
    assert tables.read_prompt_rows(path) == rows
    older = [",".join(line.split(",")[:-2]) for line in path.read_text().splitlines()]
    path.write_text("\n".join(older) + "\n")
    assert tables.read_prompt_rows(path) == [PromptRow(CELL, prompt, "ead", 0.5) for prompt in ("p", "q")]
    assert read_prompt_table(path).clusters == {}
    with pytest.raises(TableError, match="prompt of keywords 'p' is given as 'birds' and as 'fish'"):
        PromptTable.from_rows([rows[0], PromptRow(CELL, "p", "vendi", 0.5, "fish", "target")])
    with pytest.raises(TableError, match="arm 'dpo' is given as 'target' and as 'strength'"):
        PromptTable.from_rows([rows[0], PromptRow(CELL, "p", "vendi", 0.5, "birds", "strength")])


def test_prompts_that_do_not_fit_are_refused() -> None:
    def row(prompt: str, metric: str = "ead", cell: CellKey = CELL) -> PromptRow:
        return PromptRow(cell, prompt, metric, 1.0)

    with pytest.raises(TableError, match=r"keywords/dpo/0.1/seed 1: ead has 1 of the task's 2 prompts; 'q' is missing"):
        PromptTable.from_rows([row("p"), row("p", "vendi"), row("q", "vendi")])
    with pytest.raises(TableError, match="prompt 'p' has ead twice"):
        PromptTable.from_rows([row("p"), row("p")])
    other_task = CellKey("imdb", "dpo", "0.1", 1)
    assert PromptTable.from_rows([row("p"), row("q", cell=other_task)]).prompts == {"imdb": ("q",), "keywords": ("p",)}


# Commas, quotes, every kind of line break, spaces at the ends: what models write.
texts = st.text(st.sampled_from(list(",;\"'\n\r\t \u2028\x0b\x00aé漢😀")), max_size=12)


@given(st.lists(texts, min_size=1, max_size=4))
def test_responses_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, found: list[str]) -> None:
    path = tmp_path_factory.mktemp("responses") / "responses.csv"
    rows = [
        ResponseRow(CELL, "1", text, n, text, None if n else 0.5, n, n == 1, None, "mode a" if n else None)
        for n, text in enumerate(found)
    ]
    tables.write_responses(path, rows[::-1])
    assert tables.read_responses(path) == rows


def test_curves_come_back_sorted_by_metric_and_step(tmp_path: Path) -> None:
    rows = [CurveRow(CELL, step, 16 * step, metric, step / 7) for metric in ("accuracy", "loss") for step in (2, 10)]
    rows.append(CurveRow(CELL, 3, None, "reverse_kl", None))
    tables.write_curves(tmp_path / "curves.csv", rows[::-1])
    assert tables.read_curves(tmp_path / "curves.csv") == rows


def test_a_broken_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("task,arm\n")
    with pytest.raises(TableError, match=r"results.csv: the first line is 'task,arm', expected 'task,arm,strength"):
        tables.read_results(path)
    tables.write_results(path, [ResultRow("t", "dpo", "0.1", 1, "ead", 1.0)])
    path.write_text(path.read_text() + "t,dpo,0.1,1,ead,many,,\n")
    with pytest.raises(TableError, match=r"results.csv:3: could not convert string to float: 'many'"):
        tables.read_results(path)
    path.write_text(path.read_text().replace("many", "1,2"))
    with pytest.raises(TableError, match=r"results.csv:3: "):
        tables.read_results(path)


def test_the_cells_of_a_task_come_in_order() -> None:
    table = study(("b", "a"), ("tdpo2", "reference"), prompts=3)
    assert table.tasks() == ["a", "b"]
    assert table.of("b") == sorted(cells_of(["b"], ["reference", "tdpo2"]))
    assert table.measured("a", "mode_coverage") and not table.measured("a", "vendi")
