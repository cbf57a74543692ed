"""The programs for a GPU, on the processor: slots that go on, tables, CIFAR-10 in parts and back."""

import json
from pathlib import Path

import numpy as np
import pytest

import gpu
import gpu_cifar
from vitrail.errors import UserError

# ---- speed ------------------------------------------------------------------------------------------------------


def measure(file: Path, *words: str) -> int:
    return gpu.main(["--device", "cpu", "--smoke", "--output", str(file), *words])


def test_slots_are_measured_once_and_the_same_command_goes_on(tmp_path, capsys, monkeypatch):
    file = tmp_path / "gpu.json"
    assert measure(file, "--minutes", "0") == 0
    assert "5 slots are left, from 'peaks' on" in capsys.readouterr().out
    assert not file.exists()
    assert measure(file) == 0
    out = capsys.readouterr().out
    slots = json.loads(file.read_text())["slots"]
    assert list(slots) == [
        "peaks",
        *(f"{kind} {n}" for kind in ("speed", "training") for n in ("mat_1", "timm:test_vit")),
    ]
    rows = slots["speed mat_1"]
    assert [(row["batch"], row["form"], row["precision"]) for row in rows] == [
        (1, "eager", "bf16"),
        (2, "eager", "bf16"),
    ]
    assert all(row["images_per_second"] > 0 and row["difference"] < 0.05 for row in rows)
    assert rows[0]["launches"] > 100
    assert "launches" not in rows[1]
    assert "| `mat_1` | bf16 | 2 | eager |" in out
    assert "slots are left" not in out

    monkeypatch.setattr(gpu, "peaks", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(gpu, "speeds", lambda *_: pytest.fail("measured again"))
    before = file.read_bytes()
    assert measure(file) == 0
    assert file.read_bytes() == before


def test_a_slot_that_fails_costs_no_other(tmp_path, capsys, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(gpu, "speed_row", fails)
    monkeypatch.setattr(gpu, "training", fails)
    assert measure(tmp_path / "gpu.json") == 0
    slots = json.loads((tmp_path / "gpu.json").read_text())["slots"]
    assert {row["refused"] for row in slots["speed mat_1"]} == {"CUDA error: out of memory"}
    assert slots["training mat_1"] == [{"refused": "RuntimeError: CUDA error: out of memory"}]
    assert "out of memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1]", "was not written by this command"),
        (
            '{"what": "vitrail on one device", "device": "cpu", "smoke": false, "slots": {}}',
            "measurements of smoke False",
        ),
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path, capsys, content, says):
    (tmp_path / "mine.json").write_text(content)
    assert measure(tmp_path / "mine.json") == 2
    assert says in capsys.readouterr().err
    assert (tmp_path / "mine.json").read_text() == content


def test_without_a_gpu_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--output", str(tmp_path / "gpu.json")]) == 2
    assert "no usable CUDA device" in capsys.readouterr().err


def test_every_slot_has_a_name_of_its_own_and_the_longest_come_last():
    found = list(gpu.slots(gpu.FULL, gpu.torch.device("cuda")))
    names = list(dict.fromkeys(slot.name for slot in found))
    kinds = list(dict.fromkeys(slot.kind for slot in found))
    assert kinds == ["peaks", "speed", "training", "table", "compiled"] == list(gpu.EXPECTED)
    assert len(gpu.FULL.sources) == 6 + 9
    assert len(names) == 1 + 15 + 15 + 1 + 15 * 2 * 3


def test_table_10_is_in_the_order_of_the_paper_and_of_the_measurement(monkeypatch):
    rates = {"pslt_tiny": 500.0, "pslt": 700.0}
    monkeypatch.setattr(gpu, "built", lambda source, plan: source)
    monkeypatch.setattr(
        gpu,
        "speed_row",
        lambda plan, source, *_, batch, **__: {"batch": batch, "images_per_second": rates.get(source, 1.0)},
    )
    rows = gpu.table10(gpu.FULL, gpu.torch.device("cpu"))
    printed = {row["name"]: row["printed"] for row in rows}
    assert printed == {"PSLT-Tiny": 669.2, "PSLT": 638.2, "PSLT-Large": 557.7, "DeiT-S": 1457, "Swin-T": 755}
    lines = gpu.orders(rows)
    assert "- as printed: DeiT-S 1457 > Swin-T 755 > PSLT-Tiny 669 > PSLT 638 > PSLT-Large 558" in lines
    assert any(line.startswith("- measured, fp32, batch 64: PSLT 700 > PSLT-Tiny 500 > ") for line in lines)


# ---- CIFAR-10 ---------------------------------------------------------------------------------------------------


@pytest.fixture
def mini(test_data, tmp_path) -> Path:
    """30 training and 25 test images of CIFAR-10: neither fills its rows of a sheet."""
    with np.load(test_data / "cifar10_mini" / "cifar10_mini.npz") as arrays:
        train = np.concatenate([np.flatnonzero(arrays["y_train"] == c)[:3] for c in range(10)])
        path = tmp_path / "mini.npz"
        np.savez(
            path,
            x_train=arrays["x_train"][train],
            y_train=arrays["y_train"][train],
            x_test=arrays["x_test"][:25],
            y_test=arrays["y_test"][:25],
            class_names=arrays["class_names"],
        )
    return path


def test_parts_joined_are_the_images(mini, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_cifar, "SHEET", 20)
    files = gpu_cifar.pack(str(mini), tmp_path / "parts")
    assert [file.name for file in files] == ["cifar10-1.npz", "cifar10-2.npz"]
    sizes = [file.stat().st_size for file in files]
    assert max(sizes) < 0.7 * sum(sizes)
    assert sum(sizes) < mini.stat().st_size
    found = gpu_cifar.join(tmp_path / "parts")
    with np.load(mini) as expected:
        for name in ("x_train", "y_train", "x_test", "y_test", "class_names"):
            np.testing.assert_array_equal(found[name], expected[name])


def test_parts_that_do_not_belong_together_are_refused(mini, tmp_path):
    gpu_cifar.pack(str(mini), tmp_path / "parts")
    with pytest.raises(UserError, match=r"cifar10-1.npz is there already"):
        gpu_cifar.pack(str(mini), tmp_path / "parts")
    file = tmp_path / "parts" / "cifar10-2.npz"
    with np.load(file) as arrays:
        changed = {**arrays, "checksum": np.array("0" * 64)}
    np.savez(file, **changed)
    with pytest.raises(UserError, match="damaged or of different packings"):
        gpu_cifar.join(tmp_path / "parts")
    file.unlink()
    with pytest.raises(UserError, match=r"cifar10-2.npz"):
        gpu_cifar.join(tmp_path / "parts")


def test_a_part_that_does_not_travel_is_not_written(mini, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_cifar, "MOST", 1000)
    with pytest.raises(UserError, match="more than 1,000"):
        gpu_cifar.pack(str(mini), tmp_path / "parts")
    assert not list((tmp_path / "parts").iterdir())


def test_epochs_fill_nine_tenths_of_the_time():
    assert gpu_cifar.epochs_in(100, step=0.1, steps=80, evaluation=1) == 10
    assert gpu_cifar.epochs_in(0, step=0.1, steps=80, evaluation=1) == 1


def test_the_recipe_is_that_of_the_paper():
    config = gpu_cifar.recipe(["--data.root", "x.npz", "--output", "y"])
    assert (config.model, config.epochs, config.batch_size, config.precision) == ("pslt", 300, 128, "bf16")


@pytest.mark.slow
def test_a_run_ends_in_time_with_curve_and_result(mini, tmp_path, capsys):
    gpu_cifar.pack(str(mini), tmp_path / "parts")
    narrow = {"embed_dims": [12, 12, 24, 24], "num_heads": [0, 0, 2, 2], "depths": [1, 1, 1, 1], "window_size": 4}
    words = ["--device", "cpu", "--data.workers", "0", "--batch_size", "10", "--model_options", json.dumps(narrow)]
    output = tmp_path / "out"
    assert gpu_cifar.main(["train", str(tmp_path / "parts"), "--output", str(output), "--minutes", "1", *words]) == 0
    assert "of the recipe's 300 epochs" in capsys.readouterr().out
    summary = json.loads((output / "run" / "summary.json").read_text())
    assert summary["epochs"] >= 1
    assert (output / "run" / "curves.png").stat().st_size > 1000
    assert gpu_cifar.main(["train", str(tmp_path / "parts"), "--output", str(output), *words]) == 2
    assert "is not empty" in capsys.readouterr().err
