"""The notebook: every code cell runs, in its order, without Jupyter; its stored outputs are those of its code."""

import base64
import importlib.util
import io
import json
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent.parent / "docs"


def test_every_cell_runs(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("notebook", FOLDER / "notebook.py")
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    cells = json.loads(program.NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    monkeypatch.chdir(tmp_path)
    outputs = program.run(cells)
    assert (tmp_path / "drawn" / "03.png").is_file()
    assert len((tmp_path / "digits.csv").read_text().splitlines()) == 1 + 12
    stored = [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]
    # the same kinds of outputs, as numbers may differ from machine to machine
    kinds = [[sorted(one.get("data", one)) for one in found] for found in outputs]
    assert kinds == [[sorted(one.get("data", one)) for one in found] for found in stored]
    images = [one["data"]["image/png"] for found in stored for one in found if "image/png" in one.get("data", {})]
    assert [Image.open(io.BytesIO(base64.b64decode(data))).width for data in images] == [320]
