"""JSON lines: appended to, read strictly or as far as they go, and rewritten."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tdpo.records.json_files import append_jsonl, parse_lines, read_jsonl, read_log, rewrite_log


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\nnot json\n{"a": 2}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.jsonl:2: not a line of JSON"):
        read_jsonl(tmp_path / "a.jsonl")


def test_lines_of_text_may_hold_any_character(tmp_path: Path) -> None:
    entry = {"text": "two\u2028lines\x85 and \r more"}
    append_jsonl(tmp_path / "a.jsonl", entry)
    append_jsonl(tmp_path / "a.jsonl", entry)
    assert read_jsonl(tmp_path / "a.jsonl") == [entry, entry]


def test_a_log_is_rewritten_with_the_lines_that_stay(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert rewrite_log(path, lambda line: line["step"] <= 3) == []
    for step in range(1, 6):
        append_jsonl(path, {"step": step, "kl": math.inf})
    kept = rewrite_log(path, lambda line: line["step"] <= 3)
    assert [entry["step"] for entry in read_log(path)] == [1, 2, 3] and kept == read_log(path)


def test_both_kinds_of_readers_tell_broken_lines_by_number() -> None:
    content = '{"a": 1}\n\nnot json\n[3]\n{"a": 2}\n'
    strict, lenient = parse_lines(content.encode()), parse_lines(content, skip_blank=True)
    assert strict.entries == lenient.entries == [{"a": 1}, {"a": 2}]
    assert [number for number, _ in strict.broken] == [2, 3, 4]
    assert [number for number, _ in lenient.broken] == [3, 4]
    assert lenient.broken[1][1] == "expected an object, got list"
    assert parse_lines("").entries == parse_lines(b"").broken == []


def test_bytes_that_are_no_utf8_break_their_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": "\xff"}\n{"a": 1}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:1: not a line of JSON"):
        read_jsonl(path)
    assert read_log(path) == [{"a": 1}]
