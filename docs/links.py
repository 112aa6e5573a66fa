"""Every link of the built site leads somewhere, and no page loads anything from another server.

mkdocs checks what stands in Markdown; this reads the pages as they came out, with what docstrings, hooks and raw HTML
put in.  It is a hook of mkdocs: a page with a broken link ends `make docs`.
"""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """links: what a page points to, as (tag, address).  names: what can be pointed to in it."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        self.names.update(given[name] for name in ("id", "name") if name in given)
        self.links += [(tag, given[name]) for name in ("href", "src") if name in given]


def problems(site: Path) -> list[str]:
    """A line for each link that leads nowhere, and for each thing that would be loaded from elsewhere."""
    site = site.resolve()
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        where = path.relative_to(site).as_posix()
        for tag, link in page.links:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                if tag != "a" and address.scheme != "data":
                    found.append(f"{where} loads {link}")
                continue
            start = site if address.path.startswith("/") else path.parent
            target = (start / unquote(address.path).lstrip("/")).resolve() if address.path else path
            target = target / "index.html" if target.is_dir() else target
            anchors = pages[target].names if target in pages else None
            if not target.exists() or (address.fragment and anchors and unquote(address.fragment) not in anchors):
                found.append(f"{where} links to {link}")
    return sorted(set(found))


def on_post_build(config: Any, **_: Any) -> None:
    """Called by mkdocs when all pages are written."""
    from mkdocs.exceptions import PluginError

    found = problems(Path(config["site_dir"]))
    if found:
        raise PluginError("\n".join(found))
