"""From the tables of the exact benchmark to its HTML page."""

from __future__ import annotations

from pathlib import Path

from ... import __version__
from ..embedding import checked_script, embed_json, security_policy
from ..numbers import show_duration
from ..templating import joined_scripts, template_environment, template_text
from .benchmark_reading import load_exact
from .figures import MEASURES, frontier, kept, learning, legend


def render_exact(folder: Path) -> str:
    """The page on the tables in `folder` as one HTML document. Raises as `load_exact`, ImportError without jinja2."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = template_environment()
    own = joined_scripts("exact.js")
    scripts = {"plotly": checked_script("plotly.js", get_plotlyjs()), "exact": checked_script("exact.js", own)}
    exact = load_exact(folder)
    sections = [
        (tree, [kept(exact, tree), *(frontier(exact, tree, measure) for measure in MEASURES)])
        for tree in exact.values("infinite", "tree")
    ]
    finite = [(tree, learning(exact, tree)) for tree in exact.values("finite", "tree")]
    all_figures = [figure for _, figures in sections for figure in figures] + [figure for _, figure in finite]
    return environment.get_template("exact.html.jinja").render(
        sections=sections,
        finite=finite,
        legend=legend(exact),
        settings=exact.about["settings"],
        command=exact.about["command"],
        duration=show_duration(exact.about["seconds_of_all_problems"]),
        versions=exact.about["versions"],
        policy=security_policy(list(scripts.values())),
        css=Markup(template_text("report.css")),
        scripts={name: Markup(script) for name, script in scripts.items()},
        figure_data=Markup(embed_json([figure.spec for figure in all_figures])),
        writer=__version__,
        color=str,
        marker=str,
    )
