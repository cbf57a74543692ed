"""Hooks of mkdocs.yml: links to files of the repository that are no pages lead to pages that show these files.

The documentation links to recipes, programs and folders by relative paths, as a code host needs them. In the site every
such file becomes a page `files/<its path in the repository>`: Markdown as it is, text as code, a folder as a list.
Results in JSON are copied as they are.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".csv": "text", ".txt": "text"}
COPIED = {".json", ".png", ".html"}
#: a code page is found by following a link, not by searching
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n"


def target_of(link: str, source: Path) -> Path | None:
    """The file or folder of the repository that a link of `source` leads to; None of any other link."""
    path = unquote(link.partition("#")[0])
    if not path or re.match(r"[a-z]+:", path):
        return None
    target = Path(os.path.normpath(source.parent / path))
    return target if target.exists() and target.is_relative_to(ROOT) else None


def uri_of(target: Path, pages: Files) -> str:
    """The source address of a file or folder in the site, relative to docs/."""
    if target.is_relative_to(DOCS):
        own = target.relative_to(DOCS).as_posix()
        for uri in (own, f"{own}/README.md"):
            page = pages.get_file_from_path(uri)
            if page is not None and page.inclusion.is_included():
                return uri
    path = target.relative_to(ROOT).as_posix()
    return f"files/{path}" if target.suffix == ".md" or target.suffix in COPIED else f"files/{path}.md"


def content_of(target: Path) -> str:
    """The page that shows a file or folder, as Markdown."""
    if target.suffix == ".md":
        return target.read_text(encoding="utf-8")
    name = target.relative_to(ROOT).as_posix()
    if target.is_dir():
        inside = sorted(path for path in target.iterdir() if path.name[0] != "." and path.name != "__pycache__")
        listed = [f"- [{path.name}{'/' * path.is_dir()}]({target.name}/{path.name})" for path in inside]
        return "\n".join([f"{UNSEARCHED}# {name}/", "", *listed, ""])
    fence = "~" * 8
    code = target.read_text(encoding="utf-8")
    return f"{UNSEARCHED}# {name}\n\n{fence}{LANGUAGES.get(target.suffix, 'text')}\n{code}{fence}\n"


def source_of(file: File) -> Path:
    """Where the text of a page comes from: links in it are relative to this path."""
    return getattr(file, "shown", DOCS / file.src_uri)


def shown_file(target: Path, uri: str, config: Any) -> File:
    """The page or copy of a file of the repository."""
    if target.suffix in COPIED:
        file = File.generated(config, uri, abs_src_path=str(target), inclusion=InclusionLevel.NOT_IN_NAV)
    else:
        file = File.generated(config, uri, content=content_of(target), inclusion=InclusionLevel.NOT_IN_NAV)
        file.shown = target  # type: ignore[attr-defined]
    return file


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every file that a page links to, and for those that these link to."""
    waiting = list(files.documentation_pages())
    while waiting:
        page = waiting.pop()
        source = source_of(page)
        for link in LINK.findall(page.content_string):
            target = target_of(link, source)
            if target is None or files.get_file_from_path(uri := uri_of(target, files)) is not None:
                continue
            file = shown_file(target, uri, config)
            files.append(file)
            if file.is_documentation_page():
                waiting.append(file)
    return files


def rewritten(page_uri: str, source: Path, files: Files) -> Callable[[re.Match[str]], str]:
    """What replaces a link of a page."""

    def replace(found: re.Match[str]) -> str:
        link = found.group(1)
        target = target_of(link, source)
        if target is None:
            return link
        _, hash_sign, anchor = link.partition("#")
        return os.path.relpath(uri_of(target, files), os.path.dirname(page_uri)) + hash_sign + anchor

    return replace


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead the links of a page to the pages of the site."""
    return LINK.sub(rewritten(page.file.src_uri, source_of(page.file), files), markdown)
