"""The templates of the pages, and how they are filled in."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup


def template_environment() -> Environment:
    """jinja2 as all pages use it: values are escaped, and a missing value is an error. ImportError without jinja2."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("tdpo.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["with_commands"] = _with_commands
    return environment


def _with_commands(sentence: str) -> Markup:
    """A sentence in which what stands between backticks, as in a terminal, is shown as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(sentence))))


def joined_scripts(*names: str) -> str:
    """The scripts of a page with figures: what all such pages share, and then those of `names`."""
    return "\n".join(template_text(name) for name in ("wide_tables.js", "common.js", *names))


def template_text(name: str) -> str:
    """The text of a file among the templates: a style sheet, a script."""
    return files("tdpo.report").joinpath("templates", name).read_text(encoding="utf-8")
