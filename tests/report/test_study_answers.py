"""The page of a study with questions: its first screen, the contrasts, the points, and what is not known."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.contrast_cases import held_study
from helpers.report_checks import visible_text
from helpers.study_fixtures import read, write
from tdpo.cli._study_tables import answers_text
from tdpo.comparison.answering import answers_json
from tdpo.config import Contrast
from tdpo.report import write_study_report
from tdpo.report.study.answers import _where, read_answers
from tdpo.report.study.study_reading import load_study

METRIC = "gated_embedding_diversity"
TASKS = ("colours", "keywords")


@pytest.fixture(scope="module")
def answered(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up study with answers, and claims that nobody asked for."""
    path = Path(shutil.copytree(folder, tmp_path_factory.mktemp("answered") / "study"))
    pair: dict[str, Any] = {"metric": METRIC, "plus": ["tdpo2"], "minus": ["dpo"], "at_targets": [3.0, 8.0]}
    pair |= {"primary": True, "smallest_effect": 0.03}
    questions = [
        Contrast(text="Does TDPO2 keep <more>?", **pair),
        Contrast(text="And against PPO?", **{**pair, "minus": ["ppo_forward"]}),
        Contrast(text="Beside it?", **{**pair, "primary": False, "metric": "embedding_diversity"}),
    ]
    data = held_study(
        {"tdpo2": 0.06, "ppo_forward": 0.06}, tasks=TASKS, kl={"dpo": 1.3}, seed_sd=0.002, theme_sd=0.02, rest_sd=0.02
    )
    write(path / "questions.json", json.loads(json.dumps(answers_json(data, questions))))
    write(path / "claims.json", {"claims": []})
    return path


def test_the_first_screen_says_what_differs_by_how_much_and_how_sure(answered: Path) -> None:
    html = write_study_report(answered).read_text(encoding="utf-8")
    head, _, body = html.partition('<main id="main">')
    text = visible_text(head)
    assert (
        "Of 8 primary comparisons 4 show a difference, 4 show no relevant difference; in 4 the methods did not meet."
        in text
    )
    assert "No claim was judged." not in text and 'href="#claims"' not in head
    assert head.count('href="#question-1"') == 1
    assert re.search(
        r"Does TDPO2 keep &lt;more&gt;\? TDPO2 minus DPO colours, 3 nats difference \+0\.0\S+ \[.+?\] TDPO2 is higher",
        text,
    ), text
    assert text.count("methods did not meet") == 1 + 4, "the summary, and each comparison"
    assert body.index('id="answers"') < body.index('id="frontiers"') and 'id="claims"' not in body
    shown = visible_text(body)
    expected = (
        "TDPO2 minus DPO.",
        "What is not known",
        "It is not at equal KL, as the methods did not meet, on colours, 3 nats; colours, 8 nats; keywords",
        "held at 8 nats",
        "Every method where it was measured",
        "question 3, secondary",
    )
    for words in expected:
        assert words in shown, words
    assert "<more>" not in html, "texts of questions are escaped"


def test_a_question_is_drawn_on_one_axis_with_the_band_of_what_would_not_matter(answered: Path) -> None:
    answers = read_answers(load_study(answered))
    assert answers is not None and sum(len(rows) for _, rows in answers.primary) == 8 and len(answers.unknown) == 3
    assert re.match(
        r"The answers are about 3 tasks \(.+\), .*2 seeds and \d+ prompts a task\. Nothing", answers.unknown[-1]
    )
    question = answers.questions[0]
    assert question.band is not None
    left, width = question.band
    assert left + width / 2 == pytest.approx(question.zero, abs=0.02), "the band stands around zero"
    for row in question.rows:
        assert row.dot is not None and row.left < row.dot < row.left + row.width <= 100
        assert row.left > left + width / 2, "the whole interval lies right of zero"
        assert row.inner is not None and row.left < row.inner[0] < sum(row.inner) < row.left + row.width
    table = answers.points[0]
    assert (table.task, table.target) == ("colours", "3") and [row.arm for row in table.rows][-1] == "dpo"
    assert {row.reverse_kl for row in table.rows} == {"3.00", "3.90"}


def test_targets_are_written_as_they_are() -> None:
    assert [_where({"task": "t", "target": at}) for at in (0.5, 1.0, 3.0, None)] == [
        "t, 0.5 nats", "t, 1 nat", "t, 3 nats", "t",
    ]  # fmt: skip


def test_a_study_without_questions_has_no_answers(folder: Path) -> None:
    study = load_study(folder)
    assert read_answers(study) is None and study.answers == {} and not list(answers_text(folder))


def test_broken_answers_leave_gaps_and_a_note(answered: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(answered, tmp_path / "copy"))
    answers = read(copy / "questions.json")
    answers["questions"] = [3, {"text": "Odd", "sides": 1, "answers": [{"verdict": "yes", "value": None}, "x"]}]
    answers["points"] = [{"task": "t", "value": 1.0}, {"value": "x"}, 4]
    write(copy / "questions.json", answers)
    broken = read_answers(load_study(copy))
    assert broken is not None and broken.questions[0].rows[0].verdict == "undecided" and len(broken.points) == 1
    (copy / "questions.json").write_text("{", encoding="utf-8")
    study = load_study(copy)
    assert read_answers(study) is None and "no question is answered" in " ".join(study.notes)


def test_the_terminal_has_each_question_with_its_answers(answered: Path) -> None:
    lines = list(answers_text(answered))
    heading = "(1) Does TDPO2 keep <more>? gated_embedding_diversity: TDPO2 against DPO"
    assert lines[0].split() == heading.split()
    assert lines[1].startswith("    colours at 3 nats: +0.0") and "adjusted p = 0.000: DIFFERENCE" in lines[1]
    assert lines[1].split("DIFFERENCE")[1].split() == [",", "ARMS", "DID", "NOT", "MEET"]
    assert max(len(part) for line in lines for part in line.splitlines()) <= 80
