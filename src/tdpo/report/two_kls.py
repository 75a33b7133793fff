"""The page on which a learner plays with the two KLs."""

from __future__ import annotations

from importlib import metadata

from .embedding import checked_script, security_policy
from .templating import template_environment, template_text


def render_two_kls() -> str:
    """The page as one HTML document that needs nothing else. Raises ImportError when jinja2 is missing."""
    from markupsafe import Markup

    environment = template_environment()
    script = checked_script("two_kls.js", template_text("two_kls.js"))
    return environment.get_template("two_kls_page.html.jinja").render(
        policy=security_policy([script]),
        css=Markup(template_text("report.css")),
        script=Markup(script),
        writer=metadata.version("tdpo"),
    )
