"""The page in headless Chromium: its results are those of `vitrail predict`, and it asks no other host for anything."""

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from demo_helpers import Visitor, runtime_files, same_result, served
from PIL import Image

from browser_helpers import CHROMIUM, FLAGS, browser
from vitrail.checkpoint.load import open_network
from vitrail.data.images import open_image
from vitrail.demo.site import Site, demo
from vitrail.engine.predict import Predictor

#: a camera of Chromium's own, which is allowed without asking
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]

#: WebGPU without a graphics card
GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
GPU += [flag for flag in FLAGS if flag != "--disable-gpu"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    runtime_files()
    with browser(CAMERA) as started:
        yield started


@pytest.fixture(scope="module")
def sites() -> dict[str, Site]:
    """Pages by their tasks."""
    return {}


@pytest.fixture
def site(chromium, sites, weights, photographs, tmp_path_factory, exported_once):
    """The page of a task, written once."""
    made = sites

    def of(task: str) -> Site:
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            runtime = runtime_files().folder
            made[task] = demo(weights[task], output=folder, images=photographs[:3], onnxruntime_web=runtime, note=print)
        return made[task]

    return of


def visited(chromium, address, **context) -> Visitor:
    visitor = Visitor(chromium, address, **context)
    assert visitor.status("Done").startswith("Done on the processor (WebAssembly")
    return visitor


def test_ten_images_have_pytorchs_logits(chromium, site, weights, photographs):
    network = open_network(str(weights["classification"]))
    predictor = Predictor(network, "cpu")
    with served(site("classification")) as address:
        visitor = visited(chromium, address)
        visitor.open_network()
        tops = set()
        for file in photographs:
            with torch.no_grad():
                expected = network(predictor.prepare(open_image(file))[None])[0].numpy()
            found = np.array(visitor.predict(file)["logits"])
            assert np.abs(expected).max() > 3
            assert np.abs(found - expected).max() < 1e-3, file
            assert found.argmax() == expected.argmax()
            tops.add(int(expected.argmax()))
        assert len(tops) > 2
        assert visitor.trouble == []
        assert all(url.startswith((address, "data:")) for url in visitor.requests)


@pytest.mark.parametrize("task", ["detection", "semantic_segmentation"])
def test_other_tasks_have_our_results(chromium, site, weights, photographs, task):
    predictor = Predictor(open_network(str(weights[task])), "cpu")
    with served(site(task)) as address:
        visitor = visited(chromium, address)
        visitor.open_network()
        for file in photographs[:6]:
            same_result(visitor.predict(file), predictor.predict([open_image(file)])[0])
        assert visitor.trouble == []


def test_names_are_text(chromium, site):
    """Names of classes that are markup are shown as they are; the slider shows more and fewer boxes."""
    with served(site("detection")) as address:
        visitor = visited(chromium, address)
        page = visitor.page
        page.evaluate("document.querySelector('#score input').value = 0.3")
        page.dispatch_event("#score input", "input")
        shown = page.locator("#found .name").all_text_contents()
        assert {"<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>"} & set(shown)
        assert page.locator("#found img, #found script").count() == 0
        page.evaluate("document.querySelector('#score input').value = 1")
        page.dispatch_event("#score input", "input")
        assert page.inner_text("#found").startswith("Nothing with this score. The highest is ")
        assert visitor.trouble == []


def test_one_thread_without_the_headers(chromium, site):
    for isolated in (False, True):
        with served(site("classification"), isolated) as address:
            visitor = visited(chromium, address)
            assert visitor.page.evaluate("crossOriginIsolated") is isolated
            visitor.open_network()
            threads = visitor.page.evaluate("network.state.threads")
            assert threads == 1 if not isolated else threads >= 1
            assert visitor.trouble == []


def test_images_come_in_by_every_way(chromium, site, photographs, tmp_path):
    with served(site("classification")) as address:
        visitor = visited(chromium, address)
        page = visitor.page
        first = page.inner_text("#found")
        page.set_input_files("#file", photographs[5])
        page.wait_for_function("(before) => document.getElementById('found').innerText !== before", arg=first)
        assert page.evaluate("[view.width, view.height]") == [320, 240]  # 120 x 160, turned, enlarged
        assert page.evaluate("view.width > view.height")
        page.locator("#examples button").nth(2).click()
        page.wait_for_function("() => view.width === 400")  # 200 x 150
        drop = """async () => {
          const blob = await (await fetch("examples/1.png")).blob();
          const transfer = new DataTransfer();
          transfer.items.add(new File([blob], "a.png", { type: "image/png" }));
          document.getElementById("frame").dispatchEvent(
            new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
        }"""
        page.evaluate(drop)
        page.wait_for_function("() => view.width === 320")  # 64 x 64
        (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
        page.set_input_files("#file", tmp_path / "broken.png")
        assert visitor.status("This file") == "This file is no image that the browser can read."
        assert visitor.trouble == []


def test_camera(chromium, site):
    """Frame after frame of Chromium's test camera is drawn, and its rate is shown."""
    with served(site("semantic_segmentation")) as address:
        visitor = visited(chromium, address)
        page = visitor.page
        page.click("#camera")
        page.wait_for_function("() => document.getElementById('times').textContent.includes('frames per second')")
        rate = float(page.text_content("#times").split()[0])
        assert 0 < rate < 1000
        assert page.evaluate("view.width") >= 320
        page.click("#camera")
        assert page.text_content("#camera") == "Use the camera"
        assert page.evaluate("document.getElementById('video').srcObject") is None
        assert visitor.trouble == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all(chromium, site, scheme):
    with served(site("semantic_segmentation")) as address:
        context = {"viewport": {"width": 390, "height": 844}, "color_scheme": scheme, "has_touch": True}
        visitor = visited(chromium, address, **context)
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert visitor.page.evaluate(wide) == 0
        assert visitor.page.locator("#found li").count() >= 1
        assert visitor.trouble == []


def test_a_damaged_file_is_said(chromium, site, tmp_path):
    """A file cut short at the host, and one that is missing."""
    original = site("classification")
    copy = replace(original, output=str(tmp_path / "copy"))
    shutil.copytree(original.output, copy.output)
    network = Path(copy.output) / "network.onnx"
    network.write_bytes(network.read_bytes()[:-1000])
    with served(copy) as address:
        visitor = Visitor(chromium, address)
        assert visitor.status("network.onnx") == "network.onnx is not the file of this page."
        network.unlink()
        visitor = Visitor(chromium, address)
        assert visitor.status("network.onnx") == "network.onnx cannot be loaded: the server says 404."


def test_one_pixel(chromium, site, tmp_path):
    """The smallest image."""
    Image.new("RGB", (1, 1), "red").save(tmp_path / "one.png")
    for task in ("classification", "detection", "semantic_segmentation"):
        with served(site(task)) as address:
            visitor = visited(chromium, address)
            visitor.open_network()
            assert visitor.predict(tmp_path / "one.png")["width"] == 1
            assert visitor.trouble == []


def test_gpu_is_used_if_its_results_are_right(chromium, site, weights, photographs, tmp_path):
    """The same logits by WebGPU; with another result in the description the page says so and uses the processor."""
    original = site("classification")
    wrong = replace(original, output=str(tmp_path / "wrong"))
    shutil.copytree(original.output, wrong.output)
    described = Path(wrong.output) / "network.json"
    values = json.loads(described.read_text())
    values["probe"]["outputs"]["logits"]["values"][3] += 0.1 * values["probe"]["outputs"]["logits"]["largest"]
    described.write_text(json.dumps(values))
    network = open_network(str(weights["classification"]))
    with closing(chromium.browser_type.launch(executable_path=CHROMIUM, args=GPU)) as with_gpu:
        with served(original) as address:
            visitor = Visitor(with_gpu, address)
            if not visitor.page.evaluate("navigator.gpu?.requestAdapter().then(Boolean) ?? false"):
                pytest.skip("this Chromium has no WebGPU")
            assert visitor.status("Done") == "Done on the GPU (WebGPU)."
            visitor.open_network()
            assert visitor.page.evaluate("network.state.difference") < 1e-4
            file = photographs[2]
            with torch.no_grad():
                expected = network(Predictor(network, "cpu").prepare(open_image(file))[None])[0].numpy()
            assert np.abs(np.array(visitor.predict(file)["logits"]) - expected).max() < 1e-3
            visitor.page.select_option("#wish", "wasm")
            assert visitor.status("Done on the processor").startswith("Done on the processor")
            assert visitor.trouble == []
        with served(wrong) as address:
            visitor = Visitor(with_gpu, address)
            assert visitor.status("Done").startswith("Done on the processor")
            assert "The GPU is not used: its results differ by 10 %." in visitor.page.text_content("#notes")
            assert visitor.trouble == []
