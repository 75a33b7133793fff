"""Check a built site as a reader's browser would see it: nothing comes from elsewhere, and every link leads somewhere.

python release/check_site.py site
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

# What a browser fetches by itself, by tag; the address that a link (`a`) names is only opened on a click.
LOADED = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "object": "data",
}
NAMING_RELATIONS = {"canonical", "next", "prev", "alternate"}  # of `link`: they name a page, and load nothing
IN_STYLES = re.compile(r"url\(\s*['\"]?((?:https?:)?//[^)'\"]+)|@import\s+['\"]((?:https?:)?//[^'\"]+)")


@dataclass
class Page(HTMLParser):
    """What one page loads, links to, and can be linked to at."""

    loaded: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        HTMLParser.__init__(self)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        address = values.get(LOADED.get(tag, ""))
        if address is not None and values.get("rel") not in NAMING_RELATIONS:
            self.loaded.append(address)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])


def problems(site: Path) -> list[str]:
    """A sentence about everything that is loaded from elsewhere, and every local link that leads nowhere."""
    pages = {path.resolve(): _read(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        return [f"{site} holds no page; build it first: make site"]
    said = [
        f"{path.relative_to(site)} loads {next(filter(None, match))}"
        for path in sorted(site.rglob("*.css"))
        for match in IN_STYLES.findall(path.read_text(encoding="utf-8"))
    ]
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        said += [f"{name} loads {address}" for address in page.loaded if _is_elsewhere(address)]
        local = [address for address in [*page.loaded, *page.links] if not any(urlsplit(address)[:2])]
        said += [f"{name} links to {address}: {why}" for address in local if (why := _lost(address, path, site, pages))]
    return said


def _read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def _is_elsewhere(address: str) -> bool:
    return address.startswith("//") or urlsplit(address).scheme in ("http", "https")


def _lost(address: str, path: Path, site: Path, pages: dict[Path, Page]) -> str:
    """Why a local address leads nowhere; "" where it does."""
    place, anchor = urldefrag(address)
    place = urlsplit(place).path
    if place.startswith("/"):  # of the page for addresses that do not exist, which cannot know its own depth
        target = site.resolve() / unquote(place[1:])
    else:
        target = (path.parent / unquote(place)).resolve() if place else path
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return "there is no such file"
    is_here = not anchor or target not in pages or unquote(anchor) in pages[target].anchors
    return "" if is_here else "there is no such place on that page"


if __name__ == "__main__":
    built = Path(sys.argv[1])
    found = problems(built)
    sys.exit("\n".join(found) if found else None)
