"""The documentation site: its navigation, links that lead somewhere, nothing from other hosts, no console errors."""

import functools
import http.server
import importlib.util
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import yaml

import browser_helpers

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
#: pages looked at in a browser by the quick tests
SOME = ("index.html", "tutorials/boxes.html", "families/mat.html", "api/analysis.html")
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
#: attributes by which a page loads something, and elements that do not load what their `href` names
LOADED = {"src", "srcset", "poster", "data"}
NOT_LOADED = {"a", "area"}


class Plain(yaml.SafeLoader):
    """mkdocs.yml as plain values; Python's tags are left out."""


Plain.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


def entries(nav: Any) -> list[str]:
    """The pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in entries(part)]


def test_every_page_is_in_the_navigation_once():
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Plain)
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if path.parent.name != "notes"}
    named = entries(config["nav"])
    assert sorted(named) == sorted(pages)


def families() -> Any:
    """The program that writes the families' pages."""
    spec = importlib.util.spec_from_file_location("families_pages", DOCS / "families.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_equations_are_read_from_comments():
    pages = families()
    assert pages.numbers_of("(Section 3.3.2, Eq. 3.1-3.3, 3.11) or Eq. 4 and Eq. 7") == [
        "3.1",
        "3.2",
        "3.3",
        "3.11",
        "4",
        "7",
    ]
    source = (
        'class A:\n    """Eq. 2."""\n    def f(self):\n        pass  # Eq. 1\n# Eq. 3\nclass B:\n    """Eq. 1, 2."""\n'
    )
    assert pages.places(source) == {"2": ["A", "B"], "1": ["A.f", "B"]}


@pytest.mark.parametrize("family", ["pslt", "lvt", "pale", "emsnet", "mat", "partialformer"])
def test_a_familys_page_is_up_to_date_and_has_every_equation(family):
    pages = families()
    written = (DOCS / "families" / f"{family}.md").read_text(encoding="utf-8")
    assert written == pages.page(family), f"python docs/families.py {family}"
    named = set(pages.places((pages.MODELS / f"{family}.py").read_text(encoding="utf-8")))
    note = (DOCS / "families" / "notes" / f"{family}.md").read_text(encoding="utf-8")
    assert named <= {number for _, numbers, _ in pages.equations(note) for number in numbers}


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The site, built as CI builds it."""
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder


class Page(HTMLParser):
    """Ids, links and loaded addresses of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.ids.add(value)
            elif name == "href" and value and tag in NOT_LOADED:
                self.links.append(value)
            elif value and (name in LOADED or (name == "href" and tag not in NOT_LOADED)):
                self.loaded.append(value)


def pages_of(site: Path) -> dict[str, Page]:
    # 404.html is shown at any address and has absolute links
    return {
        path.relative_to(site).as_posix(): Page(path)
        for path in sorted(site.rglob("*.html"))
        if path.name != "404.html"
    }


def test_links_and_anchors_of_the_site_lead_somewhere(site):
    pages = pages_of(site)
    assert len(pages) > 30
    wrong = []
    for name, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(urljoin(f"/{name}", link))
            if parts.scheme or link.startswith("data:"):
                continue
            target = unquote(parts.path).lstrip("/") or "index.html"
            if not (site / target).is_file():
                wrong.append(f"{name}: {link} leads nowhere")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                wrong.append(f"{name}: {link} has no such heading")
    assert not wrong


def test_nothing_is_loaded_from_other_hosts(site):
    for name, page in pages_of(site).items():
        outside = [address for address in page.loaded if re.match(r"(https?:)?//", address)]
        assert not outside, f"{name} loads {outside}"
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", text), f"{path.name} loads from another host"


def test_files_that_are_no_pages_are_shown_in_the_site(site):
    shown = (site / "files" / "CONTRIBUTING.md.html", site / "files" / "CONTRIBUTING.html")
    assert any(path.is_file() for path in shown)
    assert (site / "files" / "docs" / "deploy" / "onnxruntime_example.py.html").is_file()
    assert not list(site.rglob("*.py")), "programs are shown as pages"


# ---- in a browser --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def served(site):
    """The site's address on a local server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()


@pytest.fixture(scope="module")  # closed before another file's tests open theirs: a process can have one at a time
def browser():
    """Headless Chromium."""
    with browser_helpers.browser() as opened:
        yield opened


def problems(browser: Any, start: str, names: list[str], size: str, scheme: str) -> list[str]:
    """Console errors, failed and foreign requests, and pages wider than the screen."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page, found = context.new_page(), []
    page.on(
        "console", lambda said: found.append(f"console: {said.text}") if said.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: found.append(f"error: {error}"))
    page.on("requestfailed", lambda request: found.append(f"failed: {request.url}"))
    page.on("request", lambda request: None if is_own(request.url, start) else found.append(f"asked {request.url}"))
    wrong = []
    for name in names:
        page.goto(start + name)
        page.wait_for_load_state("networkidle")
        if page.evaluate("document.documentElement.scrollWidth") > width:
            found.append("wider than the screen")
        expected = "slate" if scheme == "dark" else "default"
        if page.evaluate("document.body.getAttribute('data-md-color-scheme')") != expected:
            found.append(f"is not {scheme}")
        wrong += [f"{name}, {size}, {scheme}: {one}" for one in found]
        found.clear()
    context.close()
    return wrong


def is_own(url: str, start: str) -> bool:
    return url.startswith((start, "data:", "blob:"))


def test_pages_in_a_browser(browser, served):
    assert not problems(browser, served, list(SOME), "phone", "dark")
    assert not problems(browser, served, list(SOME), "desktop", "light")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_page_in_a_browser(browser, served, site):
    names = list(pages_of(site))
    for size in SIZES:
        for scheme in ("light", "dark"):
            assert not problems(browser, served, names, size, scheme)


def found_by_search(page: Any, words: str) -> list[str]:
    page.fill("input[data-md-component=search-query]", words)
    page.wait_for_selector(".md-search-result__link")
    return page.eval_on_selector_all(".md-search-result__link", "all => all.map(one => one.href)")


def test_search_needs_no_other_host(browser, served):
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(served + "index.html")
    links = found_by_search(page, "receptive field")
    page.close()
    assert any("analysis.html" in link for link in links)
    assert all(is_own(url, served) for url in asked), asked
