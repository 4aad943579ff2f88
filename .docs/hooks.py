"""What mkdocs is told beside its configuration: generated pages, the navigation, formulas and names, and links checked."""

import logging
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import api  # noqa: E402
import committed  # noqa: E402
from formulas import Docstrings  # noqa: E402

TASKS = {
    "smaller": "smaller",
    "faster": "faster",
    "on a phone": "phone",
    "trained sparse": "sparse",
    "as small as a budget": "budget",
    "searched for on several machines": "machines",
    "a language model": "language_model",
    "from another framework": "frameworks",
    "trained by several hosts": "hosts",
}
log = logging.getLogger("mkdocs.hooks.lepton_jax")


@event_priority(100)  # before mkdocstrings copies the extensions
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the extension of Markdown, and the navigation."""
    config.markdown_extensions.append(Docstrings(api.targets().get))  # type: ignore[arg-type]
    config.nav = [
        {"Start": ["index.md"]},
        {"My model": [{label: f"tasks/{name}.md"} for label, name in TASKS.items()]},
        {"Notebooks": committed.notebooks()},
        {"Studies": committed.studies()},
        {"API": api.navigation()},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and their pictures."""
    for path, content in {**api.pages(), **committed.pages()}.items():
        files.append(File.generated(config, path, content=content))
    return files


class _Page(HTMLParser):
    """The links and the anchors of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is not None and name in ("href", "src"):
                self.links.add(value)
            if value is not None and (name == "id" or (tag == "a" and name == "name")):
                self.anchors.add(value)


def broken_links(site: Path) -> list[str]:
    """Links of the built site to a file or an anchor that is not there, and files fetched from elsewhere.

    Links to other sites are not followed.
    """
    pages = {path.resolve(): _Page(path.read_text()) for path in site.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are from the root of wherever the site lies
            continue
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith(("data:", "mailto:")):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.exists() or (anchor and target in pages and anchor not in pages[target].anchors):
                broken.append(f"{path.relative_to(site.resolve())}: {link}")
    return broken


def on_post_build(config: MkDocsConfig, **_: Any) -> None:
    """Warn of every broken link; with ``--strict`` that is an error."""
    for link in broken_links(Path(config.site_dir)):
        log.warning("a link leads nowhere: %s", link)
