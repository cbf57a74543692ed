"""What the tests of the page share: a local server, the page in headless Chromium, Node, onnxruntime-web."""

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrail.demo.runtime_files import RuntimeFiles, find_runtime
from vitrail.demo.server import address_of, open_server
from vitrail.demo.site import Site
from vitrail.errors import UserError

PAGE = Path(__file__).parents[2] / "src" / "vitrail" / "demo" / "page"
#: a folder with node_modules/onnxruntime-web
FOLDER = os.environ.get("VITRAIL_ONNXRUNTIME_WEB")


def runtime_files() -> RuntimeFiles:
    """The files of onnxruntime-web; the test is skipped where they are not."""
    try:
        return find_runtime(FOLDER)
    except UserError:
        pytest.skip("onnxruntime-web is not installed: npm install onnxruntime-web, VITRAIL_ONNXRUNTIME_WEB=folder")


def same_result(found, expected) -> None:
    """Boxes within a hundredth of a pixel, labels equal; all but few pixels of the same class."""
    if found["kind"] == "map":
        indices = np.array(found["indices"]).reshape(found["mapHeight"], found["mapWidth"])
        assert indices.shape == expected.indices.shape
        assert (indices != expected.indices).mean() < 2e-3
        counts = np.bincount(indices.flatten(), minlength=len(expected.classes))
        assert np.allclose(found["shares"], counts / indices.size)
        return
    objects = found["objects"]
    assert len(objects) == len(expected.boxes) > 5
    assert [one["label"] for one in objects] == expected.labels.tolist()
    assert np.abs(np.array([one["box"] for one in objects]) - expected.boxes).max() < 0.02
    assert np.abs(np.array([one["score"] for one in objects]) - expected.scores).max() < 1e-4


def node(program: str, folder: Path, *arguments: str) -> str:
    """What a program prints that imports the page's scripts as "./page/*.js"; skipped where there is no Node."""
    command = shutil.which("node")
    if command is None:
        pytest.skip("Node is not installed")
    shutil.copytree(PAGE, folder / "page")
    (folder / "page" / "package.json").write_text('{"type": "module"}')
    (folder / "program.mjs").write_text(program)
    done = subprocess.run(
        [command, "program.mjs", *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """An image of coarse and fine noise, whose classes differ from image to image."""
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height))
    fine = rng.integers(-30, 30, (height, width, 3))
    return Image.fromarray((np.asarray(coarse) + fine).clip(0, 255).astype(np.uint8))


@contextmanager
def served(site: Site, isolated: bool = True) -> Iterator[str]:
    """The address of a page on a local server."""
    with open_server(Path(site.output), site.files, 0, isolated) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield address_of(server)
        finally:
            server.shutdown()
            thread.join()


class Visitor:
    """A page as a visitor opens it; `trouble` collects errors, alerts, and requests to other hosts."""

    def __init__(self, started: Any, address: str, **context: Any):
        self.context = started.new_context(**{"viewport": {"width": 1100, "height": 900}, **context})
        self.page, self.trouble, self.requests = self.context.new_page(), [], []
        self.page.on("console", lambda message: self.trouble.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.trouble.append(f"dialog: {dialog.message}"))
        self.context.on("request", lambda request: self._requested(request.url, address))
        self.page.goto(address)

    def _requested(self, url: str, address: str) -> None:
        self.requests.append(url)
        if not url.startswith((address, "data:", "blob:" + address)):
            self.trouble.append(f"request: {url}")

    def status(self, begins: str, seconds: float = 90) -> str:
        """Wait until the page's state begins like this or something went wrong; returns the state."""
        script = "(text) => (s => s.textContent.startsWith(text) || s.className)(document.getElementById('status'))"
        self.page.wait_for_function(script, arg=begins, timeout=1000 * seconds)
        return self.page.text_content("#status")

    def predict(self, file: Path, **options: Any) -> dict[str, Any]:
        """The result of the page's own network for an image file, numbers as plain lists."""
        self.page.set_input_files("#probe-file", file)
        return self.page.evaluate(PREDICT, options)

    def open_network(self) -> None:
        """Open a network beside the page's, as a page of one's own would."""
        self.page.evaluate(OPEN)


OPEN = """async () => {
  const input = document.createElement("input");
  Object.assign(input, { type: "file", id: "probe-file" });
  document.body.append(input);
  const { Network } = await import("./network.js");
  globalThis.network = await Network.open(new URL("./", location.href));
}"""
PREDICT = """async (options) => {
  const plain = (v) => ArrayBuffer.isView(v) ? Array.from(v) : Array.isArray(v) ? v.map(plain)
    : v && typeof v === "object" ? Object.fromEntries(Object.entries(v).map(([k, one]) => [k, plain(one)])) : v;
  return plain(await globalThis.network.predict(document.getElementById("probe-file").files[0], options));
}"""
