"""The page on which a learner plays with the two KLs."""

from __future__ import annotations

from .. import __version__
from .embedding import checked_script, security_policy
from .templating import template_environment, template_text

SCRIPTS = ("wide_tables.js", "two_kls.js", "kl_tree_math.js", "kl_tree.js")


def render_two_kls() -> str:
    """The page as one HTML document that needs nothing else. Raises ImportError when jinja2 is missing."""
    from markupsafe import Markup

    environment = template_environment()
    scripts = [checked_script(name, template_text(name)) for name in SCRIPTS]
    return environment.get_template("two_kls_page.html.jinja").render(
        policy=security_policy(scripts),
        css=Markup(template_text("report.css")),
        scripts=[Markup(script) for script in scripts],
        writer=__version__,
    )
