"""Pages in headless Chromium: what a reader sees, and whether anything went wrong."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
#: desktop and phone
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@contextmanager
def browser(flags: Sequence[str] = ()) -> Iterator[Any]:
    """Chromium, with further flags; the test is skipped where it is not installed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with sync_api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags])
        yield started
        started.close()


class Reader:
    """A page as a reader opens it; `trouble` collects errors, alerts and requests."""

    def __init__(self, started: Any, file: Path, size: str = "desktop", scheme: str = "light", script: bool = True):
        width, height = SIZES[size]
        self.context = started.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, java_script_enabled=script
        )
        self.page, self.trouble = self.context.new_page(), []
        self.page.on("console", lambda message: self.trouble.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.trouble.append(f"dialog: {dialog.message}"))
        self.page.on("request", self._requested)
        self.page.goto(file.as_uri())

    def _requested(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:image/")):
            self.trouble.append(f"request: {request.url}")

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def broken_images(self) -> int:
        """Number of images that are not shown."""
        return self.page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")


def check_everywhere(started: Any, file: Path, folder: Path | None = None) -> None:
    """A page without errors, requests and sideways scrolling on desktop and phone, light and dark."""
    backs = {}
    for size in SIZES:
        for scheme in ("light", "dark"):
            reader = Reader(started, file, size, scheme)
            assert reader.trouble == []
            assert reader.overflow() == 0, (size, scheme)
            assert reader.broken_images() == 0
            backs[scheme] = reader.page.evaluate("getComputedStyle(document.body).backgroundColor")
            if folder is not None:
                reader.page.screenshot(path=folder / f"{size}-{scheme}.png", full_page=True)
            reader.context.close()
    assert backs["light"] != backs["dark"]


def stand_in(folder: Path, webgpu: bool = True) -> Path:
    """A folder that looks like onnxruntime-web's, with files of a few bytes."""
    folder.mkdir(parents=True)
    kinds = {"ort.wasm.min.mjs": "", "ort.webgpu.min.mjs": ".asyncify"} if webgpu else {"ort.wasm.min.mjs": ""}
    for script, kind in kinds.items():
        module = f"ort-wasm-simd-threaded{kind}"
        (folder / script).write_text(f'/*!\n * ONNX Runtime Web v9.8.7\n */ load("{module}.mjs")')
        (folder / f"{module}.mjs").write_text("module")
        (folder / f"{module}.wasm").write_bytes(b"\0asm")
    return folder
