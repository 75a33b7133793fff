"""Caches: found, described, kept while they are used, deleted in the order of their last use within a limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tdpo.cli import _console
from tdpo.cli import cache as cache_command
from tdpo.cli.app import app
from tdpo.records.caches import (
    Cache,
    cache_limit,
    delete,
    make_room,
    note_about,
    readable_bytes,
    reference_caches,
    room_left,
    size_of,
    use,
)
from tdpo.records.locks import lock


def made(root: Path, number: int, size: int = 1000, **about: str) -> Path:
    """A finished cache that was last used on the day `number` of 1970."""
    folder = root / f"{number:032x}"
    folder.mkdir(parents=True)
    (folder / "hidden.bin").write_bytes(b"x" * size)
    manifest = {"what": "tdpo reference cache", "pairs": 7, "fingerprint": {"model": "0123456789abcdef"}}
    (folder / "cache.json").write_text(json.dumps(manifest))
    if about:
        note_about(folder, about)
    (folder / "in_use.lock").touch()
    for path in (folder / "cache.json", folder / "in_use.lock", folder):
        os.utime(path, (86_400 * number, 86_400 * number))
    return folder


def names(root: Path) -> list[int]:
    return sorted(int(cache.folder.name[:32], 16) for cache in reference_caches(root))


def test_caches_are_found_with_what_they_say(tmp_path: Path) -> None:
    made(tmp_path, 2, model="org/name", data="pairs.jsonl")
    made(tmp_path, 1)
    (tmp_path / f"{3:032x}.partial").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / f"{4:032x}").mkdir()  # no manifest: somebody else's
    first, second, partial = reference_caches(tmp_path)
    assert (first.model, first.data, first.last_used_on) == ("unknown (digest 01234567)", "7 pairs", "1970-01-02")
    assert (second.model, second.data, second.in_use) == ("org/name", "pairs.jsonl", False)
    assert partial.kind == "unfinished reference cache" and 1000 < first.bytes < 1200
    assert reference_caches(tmp_path / "nowhere") == []


def test_what_is_used_or_made_stays(tmp_path: Path) -> None:
    used, half = made(tmp_path, 1), tmp_path / f"{2:032x}.partial"
    half.mkdir()
    holders = [use(used), use(used)]
    with lock(tmp_path / f"{2:032x}.lock"):
        caches = reference_caches(tmp_path)
        assert [cache.in_use for cache in caches] == [True, True] and not any(map(delete, caches))
    for holder in holders:
        assert holder is not None
        holder.close()
    caches = reference_caches(tmp_path)
    assert not any(cache.in_use for cache in caches) and caches[-1].last_used > 86_400 * 1000, "used just now"
    assert all(map(delete, caches)) and reference_caches(tmp_path) == []


def test_a_use_ends_with_its_process(tmp_path: Path) -> None:
    folder = made(tmp_path, 1)
    script = (
        f"import sys; from pathlib import Path; from tdpo.records.caches import use; f = use(Path({str(folder)!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", f"{script}; print('used', flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "used\n"
    [cache] = reference_caches(tmp_path)
    assert cache.in_use and not delete(cache)
    process.kill()
    process.wait()
    assert delete(cache) and not folder.exists()


def test_room_is_made_by_the_last_use(tmp_path: Path) -> None:
    for number in (5, 3, 4, 1, 2):
        made(tmp_path, number)
    holder = use(tmp_path / f"{1:032x}")
    each = reference_caches(tmp_path)[1].bytes
    own = tmp_path / f"{9:032x}"
    assert make_room(tmp_path, each, 6 * each + 10, own) == []
    deleted = make_room(tmp_path, each, 4 * each + 10, own)
    assert [int(cache.folder.name, 16) for cache in deleted] == [2, 3] and names(tmp_path) == [1, 4, 5]
    assert 3 * each <= room_left(tmp_path, 4 * each + 10, own) <= 3 * each + 10
    make_room(tmp_path, each, 10, own)
    assert names(tmp_path) == [1], "what is in use stays, whatever the limit"
    assert holder is not None
    holder.close()


def test_half_a_deletion_is_found_and_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path) -> None:
        if path.exists():
            raise KeyboardInterrupt

    made(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr("tdpo.records.caches.remove", killed)
        with pytest.raises(KeyboardInterrupt):
            delete(reference_caches(tmp_path)[0])
    [half] = reference_caches(tmp_path)
    assert half.folder.name.endswith(".being-deleted") and delete(half) and reference_caches(tmp_path) == []


def test_sizes_are_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, expected in (("20GB", 20e9), ("500 mb", 5e8), ("1.5TB", 1.5e12), ("1000", 1000), ("2k", 2000)):
        assert size_of(text, "x") == expected
    assert readable_bytes(size_of("75MB", "x")) == "75 MB"
    monkeypatch.setenv("TDPO_CACHE_LIMIT", "much")
    with pytest.raises(ValueError, match="TDPO_CACHE_LIMIT is 'much', expected a size such as 20GB"):
        cache_limit()


# The command


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TDPO_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    made(tmp_path / "reference", 1, model="Qwen/Qwen3-0.6B", data="old.jsonl")
    made(tmp_path / "reference", 2, model="smollm2-135m", data="pairs.jsonl")
    (tmp_path / "models" / "smollm2-135m-0.1.2").mkdir(parents=True)
    (tmp_path / "models" / "smollm2-135m-0.1.2" / "config.json").write_text("{}")
    return tmp_path


def call(*arguments: str, answer: str = "") -> tuple[int, str]:
    result = CliRunner().invoke(app, ["cache", *arguments], input=answer)
    return result.exit_code, result.output


def test_the_command_lists_selects_asks_and_clears(root: Path) -> None:
    code, listed = call("list")
    assert code == 0 and "Qwen/Qwen3-0.6B" in listed and "pairs.jsonl" in listed and "1970-01-02" in listed
    assert "3 in" in listed and "100 GB" in listed
    for arguments, said in (
        ((), "nothing was selected"),
        (("--all", "--model", "x"), "give one or the others"),
        (("--older-than", "soon"), "such as 12h, 30d or 8w"),
        (("nowhere", "--all"), "nowhere: no such folder"),
    ):
        assert call("clear", *arguments)[0] == 2 and said in call("clear", *arguments)[1], arguments
    assert "nothing was deleted" in call("clear", "--model", "qwen", answer="n\n")[1]
    assert "nothing to delete" in call("clear", "--model", "gemma")[1]
    assert names(root / "reference") == [1, 2]
    code, said = call("clear", "--model", "qwen", answer="y\n")
    assert code == 0 and "deleted 1," in said and names(root / "reference") == [2]
    holder = use(root / "reference" / f"{2:032x}")
    code, said = call("clear", "--all", "--yes")
    assert f"{2:032x} stays: a running process uses it" in said and "deleted 1," in said
    assert holder is not None
    holder.close()
    assert "deleted 1," in call("clear", str(root), "--older-than", "0h", "-y")[1] and "no caches in" in call("list")[1]


def test_long_names_are_broken_at_slashes_or_cut(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(_console, "out", _console.out.__wrapped__)
    monkeypatch.setattr(cache_command, "out", _console.out)
    long = "a_very_long_name_of_a_file_of_preferences_of_2026.jsonl"
    made(root / "reference", 3, model="some-organisation/Some-Model-0.6B-Base", data=f"data/{long}")
    listed = call("list")[1]
    table = [line for line in listed.splitlines() if line.startswith(("│", "┃"))]
    cells = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in table]
    of_third = [line[1:3] for line in cells if line[0] == "reference cache" or not line[0]]
    models, files = ([line[n] for line in of_third if line[n]] for n in (0, 1))
    assert {"smollm2-135m", "Qwen/Qwen3-0.6B"} <= set(models), "names that fit are whole"
    assert models[-2:] == ["some-org…sation/", "Some-Mod…6B-Base"], "one name in two lines, each cut in its middle"
    assert "data/" in files and any("…" in name and name.endswith(".jsonl") for name in files)
    assert all(len(line) <= 80 for line in listed.splitlines()[:-2])


def test_age_is_that_of_the_last_use(root: Path) -> None:
    holder = use(root / "reference" / f"{1:032x}")
    assert holder is not None
    holder.close()
    (root / "models" / "smollm2-135m-0.1.2" / "config.json").touch()
    assert "deleted 1," in call("clear", "--older-than", "30d", "--yes")[1] and names(root / "reference") == [1]


def test_a_cache_that_is_gone_counts_as_deleted(tmp_path: Path) -> None:
    assert delete(Cache(tmp_path / ("0" * 32), "reference cache", 0, {}, 0.0, False))
