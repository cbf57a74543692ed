"""The folder that `vitrail demo` writes, what it refuses, and its local server."""

import http.client
import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from demo_helpers import PAGE
from PIL import Image

from browser_helpers import stand_in
from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import save_weights
from vitrail.cli import demo as command
from vitrail.cli import main
from vitrail.demo import runtime_files
from vitrail.demo.description import TASKS, preparation_of
from vitrail.demo.runtime_files import find_runtime
from vitrail.demo.server import open_server
from vitrail.demo.site import demo, example_images
from vitrail.deploy.export.runtime import open_deployed
from vitrail.errors import UserError
from vitrail.factory import assemble

MODEL = "emsnet_xxtiny"


@pytest.fixture
def built(weights, photographs, tmp_path, exported_once):
    """Writes the classifier's page with further options."""
    runtime = stand_in(tmp_path / "onnxruntime")

    def build(**options):
        given = {"images": photographs[:3], "onnxruntime_web": runtime, "note": lambda text: None, **options}
        return demo(weights["classification"], output=tmp_path / "site", **given)

    return build


def names(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_the_folder_is_whole(built, tmp_path, photographs):
    said = []
    site = built(note=said.append, title="My <b>clothes</b>\u202e")
    folder = tmp_path / "site"
    assert names(folder) - {".vitrail-files.jsonl"} == set(site.files)
    described = json.loads((folder / "network.json").read_text())
    assert described["title"] == "My <b>clothes</b>\\u202e"
    assert described["bytes"] == (folder / described["file"]).stat().st_size
    assert described["classes"] == [f"class {i}" for i in range(10)]
    assert len(described["colours"]) == 10
    assert [name for name in described["examples"] if not (folder / name).is_file()] == []
    assert len(described["examples"]) == 3
    assert described["runtime"] == {
        "wasm": "ort/ort.wasm.min.mjs",
        "webgpu": "ort/ort.webgpu.min.mjs",
        "onnxruntime-web": "9.8.7",
    }
    with Image.open(folder / described["examples"][1]) as image, Image.open(photographs[1]) as original:
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(original.convert("RGB")))
    assert open_deployed(folder / "network.onnx").metadata.shape == [1, 3, 64, 64]
    assert site.difference < 1e-4
    assert said == []


def test_nothing_leads_to_another_address(built, tmp_path):
    """Our own files hold no address at all, but for the licence's and the one of SVG's and the like that none is of."""
    built()
    for file in (*PAGE.glob("*"), tmp_path / "site" / "network.json"):
        if file.is_file():
            assert re.findall(r"(?:https?:|wss?:|\"|')//\S*", file.read_text()) == [], file


def test_written_again_only_its_own_files_are_replaced(built, tmp_path):
    built()
    folder = tmp_path / "site"
    (folder / "mine.txt").write_text("mine")
    (folder / "examples" / "mine.png").write_text("mine")
    before = names(folder)
    built(examples=1)
    assert before - names(folder) == {"examples/2.png", "examples/3.png"}
    assert (folder / "examples" / "mine.png").read_text() == "mine"
    (folder / "index.html").write_text("changed by hand")
    with pytest.raises(UserError, match=r"index\.html was there before, or was changed"):
        built()
    assert (folder / "index.html").read_text() == "changed by hand"
    assert names(folder) == before - {"examples/2.png", "examples/3.png"}


def test_files_of_others_are_in_the_way(built, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("not ours")
    with pytest.raises(UserError, match="was there before"):
        built()
    assert names(tmp_path / "site") == {"index.html"}


def test_without_files_for_the_gpu(built, tmp_path):
    said = []
    site = built(note=said.append, onnxruntime_web=stand_in(tmp_path / "older", webgpu=False))
    assert not site.webgpu
    assert json.loads((tmp_path / "site" / "network.json").read_text())["runtime"]["webgpu"] is None
    assert "no files for WebGPU" in said[0]


# ---- onnxruntime-web --------------------------------------------------------------------------------------------


def test_the_runtime_is_found(tmp_path, monkeypatch):
    dist = stand_in(tmp_path / "project" / "node_modules" / "onnxruntime-web" / "dist")
    for named in (dist, dist.parent, dist.parents[1], dist.parents[2]):
        assert find_runtime(named).folder == dist
    (tmp_path / "project" / "below").mkdir()
    monkeypatch.chdir(tmp_path / "project" / "below")
    found = find_runtime(None)
    assert found.folder == dist
    assert found.version == "9.8.7"
    assert [path.name for path in found.paths] == [
        "ort.wasm.min.mjs",
        "ort-wasm-simd-threaded.mjs",
        "ort-wasm-simd-threaded.wasm",
        "ort.webgpu.min.mjs",
        "ort-wasm-simd-threaded.asyncify.mjs",
        "ort-wasm-simd-threaded.asyncify.wasm",
    ]


def test_without_the_runtime_one_sentence_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime_files, "GLOBAL", ())
    monkeypatch.setattr(runtime_files, "distributions", lambda: [])
    monkeypatch.setattr(runtime_files.sys, "prefix", str(tmp_path))
    assert main(["demo", f"random:{MODEL}", "--output", "site"]) == 2
    said = capsys.readouterr().err
    assert "npm install onnxruntime-web" in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"--onnxruntime_web .* holds no ort\.wasm\.min\.mjs"):
        find_runtime(tmp_path)


def test_a_package_may_hold_the_runtime(tmp_path, monkeypatch):
    dist = stand_in(tmp_path / "package" / "static")

    class Distribution:
        files = (Path("package/static/ort.wasm.min.mjs"),)

        def locate_file(self, file):
            return tmp_path / file

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime_files, "GLOBAL", ())
    monkeypatch.setattr(runtime_files, "distributions", lambda: [Distribution()])
    monkeypatch.setattr(runtime_files.sys, "prefix", str(tmp_path))
    assert find_runtime(None).folder == dist


# ---- what is refused --------------------------------------------------------------------------------------------


def refused(tmp_path, head, task, classes=("a", "b"), **options):
    """The sentence about a network of that head."""
    network = assemble(MODEL, head, None, options).eval()
    file = tmp_path / f"{head}.safetensors"
    meta = WeightsMeta(MODEL, head=head, head_options=options, task=task, classes=list(classes))
    save_weights(file, network.state_dict(), meta)
    with pytest.raises(UserError) as error:
        demo(file, output=tmp_path / "site", onnxruntime_web=stand_in(tmp_path / f"ort_{head}"))
    assert not (tmp_path / "site").exists()
    return str(error.value)


def test_networks_the_page_has_no_drawing_for(tmp_path):
    said = refused(tmp_path, "bnneck", "reid", num_ids=2)
    assert said == f"vitrail demo shows {', '.join(TASKS)}; this is a network for reid."
    said = refused(tmp_path, "ssdlite", "detection", num_classes=3, image_size=[64, 64], classes=["a", "b", "c"])
    assert said == "vitrail demo shows detections of head retinanet; this network has head ssdlite."


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"examples": 65}, "--examples 65 is not allowed; give a number from 0 to 64."),
        ({"images": ["nothing.png"]}, "nothing.png does not exist"),
        ({"image_size": 0}, "image_size"),
    ],
)
def test_values_that_cannot_be(built, tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        built(**options)
    assert not (tmp_path / "site").exists()


def test_port_needs_the_server(capsys):
    assert main(["demo", f"random:{MODEL}", "--output", "site", "--port", "8000"]) == 2
    assert "--port 8000 has no effect without --serve" in capsys.readouterr().err
    assert main(["demo", f"random:{MODEL}", "--output", "site", "--serve", "--port", "70000"]) == 2
    assert "--port 70000 is not allowed" in capsys.readouterr().err


# ---- sizes ------------------------------------------------------------------------------------------------------


def test_another_size(weights, tmp_path):
    from vitrail.checkpoint.load import open_network
    from vitrail.deploy.export.wrappers import part_of

    expected = {
        "classification": {"resize": [math_floor(80, 0.9), math_floor(96, 0.9)]},
        "detection": {"min_size": 48, "max_size": 80},
        "semantic_segmentation": {"short_side": 48, "max_side": 120},
    }
    for task, how in expected.items():
        network = open_network(str(weights[task]))
        size = (80, 96) if task == "classification" else 48
        made = preparation_of(network, part_of(network, features=False).module, size)
        assert {name: made.how[name] for name in how} == how
        if task != "classification":
            with pytest.raises(UserError, match="keeps the shape of images; give one side"):
                preparation_of(network, part_of(network, features=False).module, (48, 64))


def math_floor(side: int, share: float) -> int:
    return int(side / share)


def test_examples_are_validation_images(tmp_path, weights):
    """Without data of a run there are none; a few of many files are spread over them."""
    from vitrail.checkpoint.load import open_network

    network = open_network(str(weights["classification"]))
    assert example_images(str(weights["classification"]), network, images=[], count=8, note=print) == ([], "none")
    for i in range(10):
        Image.new("RGB", (4, 4), (25 * i, 0, 0)).save(tmp_path / f"{i}.png")
    found, source = example_images("x", network, images=[tmp_path], count=3, note=print)
    assert [image.getpixel((0, 0))[0] // 25 for image in found] == [0, 3, 6]
    assert source == "3 of --images"


# ---- server -----------------------------------------------------------------------------------------------------


@pytest.fixture
def address(tmp_path):
    for name in ("index.html", "a.mjs", "b.wasm", "ort/c.mjs", "secret.txt"):
        (tmp_path / "s" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "s" / name).write_text(name)
    with open_server(tmp_path / "s", ["index.html", "a.mjs", "b.wasm", "ort/c.mjs"], 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address
        server.shutdown()
        thread.join()


def asked(address, path, method="GET", **headers):
    connection = http.client.HTTPConnection(*address, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def test_server_sends_the_page_as_browsers_need_it(address):
    assert address[0] == "127.0.0.1"
    kinds = {
        "/": "text/html",
        "/index.html?x#y": "text/html",
        "/a.mjs": "text/javascript",
        "/b.wasm": "application/wasm",
        "/ort/c.mjs": "text/javascript",
    }
    for path, kind in kinds.items():
        status, headers, body = asked(address, path)
        assert (status, headers["Content-Type"].split(";")[0]) == (200, kind)
        assert body.decode() == path.split("?")[0].removeprefix("/") or path == "/"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert asked(address, "/a.mjs", "HEAD")[2] == b""


def test_server_shows_no_other_file(address):
    for path in ("/secret.txt", "/../s/secret.txt", "/%2e%2e/s/index.html", "/ort/", "/ort"):
        assert asked(address, path)[0] == 404, path
    assert asked(address, "/", Host="evil.example")[0] == 404
    assert asked(address, "/", Host=f"localhost:{address[1]}")[0] == 200
    assert asked(address, "/", "POST")[0] == 501


def test_a_taken_port_is_one_sentence(address, tmp_path):
    with pytest.raises(UserError, match=f"--port {address[1]} cannot be used"):
        open_server(tmp_path, [], address[1])


def test_the_command_serves_what_it_wrote(weights, tmp_path, monkeypatch, capsys, exported_once):
    passed = []
    monkeypatch.setattr(command, "serve", lambda *given: passed.append(given[:3]))
    runtime = str(stand_in(tmp_path / "ort"))
    argv = ["demo", str(weights["classification"]), "--output", str(tmp_path / "site"), "--onnxruntime_web", runtime]
    assert main([*argv, "--serve", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    ((folder, files, port),) = passed
    assert (folder, port) == (tmp_path / "site", 8000)
    assert set(files) == set(told["files"]) == names(folder) - {".vitrail-files.jsonl"}
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "emsnet_xxtiny, 10 classes, in" in out
    assert len(passed) == 1
