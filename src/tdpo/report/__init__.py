"""Self-contained HTML files: reports on runs and on studies, the page on the two KLs. Never imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..records.files import write_text
from ..records.names import ABOUT_FILE, REPORT_FILE, RESULTS_FILE

__all__ = ["is_study", "write_exact_report", "write_report", "write_study_report", "write_two_kls"]


def write_report(run_dirs: Sequence[Path], out: Path, *, remark: str = "") -> Path:
    """Write one offline HTML report on the runs in `run_dirs` to the file `out`, and return `out`.

    Runs appear in the order given, side by side. Whatever a run lacks (no evaluation yet, training interrupted, a
    broken line) is said in the report; so is `remark`, a sentence of the caller's on all runs. The same run directories
    give the same bytes; `out` is replaced atomically.

    Raises ValueError when no directory is given or one is given twice, FileNotFoundError when one does not exist or
    is no run directory, IsADirectoryError when `out` is a folder, ImportError when jinja2 or plotly is missing.
    """
    from .run_reading import load_runs

    out = Path(out)
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; give the report a file name, for instance {out / 'report.html'}")
    try:
        from .page import render

        page = render(load_runs([Path(run_dir) for run_dir in run_dirs]), remark)
    except ImportError as error:
        from ..installation import extra_command

        raise ImportError(
            f"the report needs jinja2 and plotly ({error}); install them with: {extra_command('eval')}"
        ) from error
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page, errors="replace")  # lone surrogates in model text have no UTF-8 form
    return out


def write_two_kls(out: Path) -> Path:
    """Write the interactive page on forward and reverse KL to the file `out`, replaced atomically, and return `out`.

    Raises IsADirectoryError when `out` is a folder, ImportError when jinja2 is missing.
    """
    out = Path(out)
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; give the page a file name, for instance {out / 'two_kls.html'}")
    try:
        from .two_kls import render_two_kls

        page = render_two_kls()
    except ImportError as error:
        from ..installation import extra_command

        raise ImportError(f"the page needs jinja2 ({error}); install it with: {extra_command('eval')}") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    return out


def is_study(folder: Path) -> bool:
    """Whether `folder` is that of a study (`tdpo compare`), and not a run directory."""
    return all((Path(folder) / name).is_file() for name in (ABOUT_FILE, RESULTS_FILE))


def write_study_report(study_dir: Path, out: Path | None = None) -> Path:
    """Write one offline HTML report on the study in `study_dir` to `out` (default: report.html in it); the file's path.

    What the study lacks (a metric, a cell, the claims, the responses) is said in the report instead. Responses that
    would make the page larger than 8 MB are left out, for all methods alike, and the page says so. The same folder
    gives the same bytes; the file is replaced atomically.

    Raises FileNotFoundError when `study_dir` is no study's folder, ValueError when its about.json is unreadable,
    IsADirectoryError when `out` is a folder, ImportError when jinja2 or plotly is missing.
    """
    study_dir = Path(study_dir)
    out = study_dir / REPORT_FILE if out is None else Path(out)
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; give the report a file name, for instance {out / 'report.html'}")
    try:
        from .study.page import render_study

        page = render_study(study_dir)
    except ImportError as error:
        from ..installation import extra_command

        raise ImportError(
            f"the report needs jinja2 and plotly ({error}); install them with: {extra_command('eval')}"
        ) from error
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page, errors="replace")
    return out


def write_exact_report(folder: Path) -> Path:
    """Write one offline HTML page on the exact benchmark in `folder` (`tdpo exact`) to report.html in it; its path.

    Raises FileNotFoundError when a table is missing, ImportError when jinja2 or plotly is missing.
    """
    try:
        from .exact.page import render_exact

        page = render_exact(Path(folder))
    except ImportError as error:
        from ..installation import extra_command

        raise ImportError(
            f"the page needs jinja2 and plotly ({error}); install them with: {extra_command('eval')}"
        ) from error
    out = Path(folder) / REPORT_FILE
    write_text(out, page)
    return out
