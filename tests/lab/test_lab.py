import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lab_helpers import small_argv, small_options, small_recipe, steady

import vitrail
from vitrail.engine.evaluate import evaluate
from vitrail.errors import Interrupted, UserError
from vitrail.lab import MIXERS
from vitrail.lab import work as working
from vitrail.lab.ablations import FAMILIES
from vitrail.lab.candidates import DEFAULT_MIXERS, all_mixers
from vitrail.lab.costs import Costs
from vitrail.lab.laboratory import _candidates, run_lab
from vitrail.lab.options import LabConfig
from vitrail.lab.plan import LabFolder
from vitrail.lab.table import markdown
from vitrail.metrics.significance import interval


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished laboratory: its folder and its document."""
    folder = tmp_path_factory.mktemp("lab") / "done"
    said: list[str] = []
    document = run_lab(small_options(), small_recipe(), output=folder, note=said.append)
    return folder, document, said


def test_document_and_files(done):
    folder, document, said = done
    assert json.loads((folder / "lab.json").read_text()) == json.loads(json.dumps(document))
    assert document["complete"]
    assert (document["runs_done"], document["runs"]) == (4, 4)
    order = [line.partition(": ")[2] for line in said if line.startswith("run ") and "%" not in line]
    assert order == ["identity, seed 0", "window, seed 0", "identity, seed 1", "window, seed 1"]
    rows = {row["name"]: row for row in document["rows"]}
    assert set(rows) == {"identity", "window"}
    means = [row["top1"]["mean"] for row in document["rows"]]
    assert means == sorted(means, reverse=True)
    for row in rows.values():
        values = [run["top1"] for run in row["runs"]]
        assert row["top1"]["mean"] == pytest.approx(np.mean(values))
        assert row["top1"]["high"] == pytest.approx(interval(values).high)
        assert abs(row["params"] / document["budget"] - 1) < 0.03
        assert row["latency_ms"] > 0
        assert len(row["runs"][0]["history"]) == 1
    assert rows["identity"]["span_pixels"] is None
    assert 0 < rows["window"]["span_pixels"] < 32 * 2**0.5
    assert [one["side"] for one in rows["window"]["spectrum"]] == [16, 8, 4, 2]
    (neighbours,) = document["comparisons"]
    assert neighbours["p_seeds_holm"] == neighbours["p_seeds"]  # a single comparison
    assert (folder / "lab.html").read_text().startswith("<!doctype html>")
    assert (folder / "lab.md").read_text() == markdown(document)
    assert not list((folder / "claims").iterdir())


def test_results_follow_the_measures(done, tmp_path):
    folder, document, _ = done
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    file = other / "measures" / "window.seed-1.json"
    measures = json.loads(file.read_text())
    file.write_text(json.dumps({**measures, "top1": measures["top1"] + 50}))
    again = run_lab(output=other)
    means = [{row["name"]: row["top1"]["mean"] for row in one["rows"]} for one in (document, again)]
    assert means[1] == {**means[0], "window": pytest.approx(means[0]["window"] + 25)}
    assert json.loads((other / "lab.json").read_text())["rows"][0]["name"] == "window"


def test_each_run_is_an_ordinary_one(done):
    folder, document, _ = done
    for row in document["rows"]:
        for run in row["runs"]:
            path = folder / run["folder"]
            assert evaluate(path, device="cpu")["top1"] == pytest.approx(run["top1"], abs=1e-9)
            assert vitrail.load(path).meta.metrics["top1"] == pytest.approx(run["top1"], abs=1e-9)


def test_runs_of_one_seed_see_the_same_batches(done, monkeypatch):
    folder, *_ = done
    plan = LabFolder(folder).plan()
    assert plan is not None
    seen = []
    for job in plan.jobs():
        config = working.config_of(LabFolder(folder), plan.recipe, job)
        task = working.open_task(config)
        batches = task.train_batches()
        batches.set_epoch(0)
        x, y = next(iter(batches))
        seen.append((job.seed, x, y))
    assert torch.equal(seen[0][1], seen[1][1])
    assert torch.equal(seen[0][2], seen[1][2])
    assert not torch.equal(seen[0][1], seen[2][1])


def test_a_complete_laboratory_is_not_measured_again(done, monkeypatch):
    folder, document, _ = done
    monkeypatch.setattr("vitrail.lab.laboratory.measure_costs", lambda *args: pytest.fail("measured again"))
    monkeypatch.setattr(working, "fit", lambda *args: pytest.fail("trained again"))
    again = json.loads(json.dumps(document))
    assert run_lab(output=folder) == again
    assert run_lab(small_options(), small_recipe(), output=folder) == again


@pytest.fixture
def no_costs(monkeypatch):
    """Latency and memory are not measured, which takes longer than these trainings."""
    nothing = Costs({}, {}, {}, {"cpu": "none", "device": "cpu", "threads": 1, "load": [0, 0]})
    monkeypatch.setattr("vitrail.lab.laboratory.measure_costs", lambda *args: nothing)


# ---- going on -------------------------------------------------------------------------------------------------------


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "vitrail", *argv]


def same_results(folder: Path, document) -> None:
    found = steady(json.loads((folder / "lab.json").read_text()))
    wanted = steady(json.loads(json.dumps(document)))
    for one in (found, wanted):
        for place in ("output",):
            one["plan"]["recipe"].pop(place)
    assert found == wanted


def test_a_killed_laboratory_goes_on_and_gives_the_same_table(done, tmp_path, no_costs):
    _, document, _ = done
    folder = tmp_path / "killed"
    argv = small_argv(folder, "--checkpoint_every", "1")
    with subprocess.Popen(command(*argv), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        state = folder / "runs" / "window" / "seed-0" / "last"
        deadline = time.time() + 500
        while not state.exists() and process.poll() is None and time.time() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    names = sorted(path.name for path in (folder / "measures").iterdir())
    assert "identity.seed-0.json" in names
    assert len(names) < 4
    said: list[str] = []
    run_lab(small_options(), small_recipe(checkpoint_every=1), output=folder, note=said.append)
    assert not any("identity, seed 0" in line for line in said)  # it was done
    same_results(folder, {**document, "plan": json.loads((folder / "lab.json").read_text())["plan"]})


def test_two_processes_give_the_same_table_as_one(done, tmp_path):
    _, document, _ = done
    folder = tmp_path / "two"
    argv = command(*small_argv(folder, "--json"))
    both = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=550) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert json.loads(printed[0][0]) == json.loads(printed[1][0]) == json.loads((folder / "lab.json").read_text())
    same_results(folder, document)
    ran = [sum(": run " in line and "%" in line for line in said.splitlines()) for _, said in printed]
    assert sum(ran) == 4
    assert min(ran) > 0  # both had a share


@pytest.mark.slow
def test_torchrun_shares_the_work(done, tmp_path):
    _, document, _ = done
    folder = tmp_path / "launched"
    argv = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "vitrail"]
    run = subprocess.run([*argv, *small_argv(folder, "--json")], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == json.loads((folder / "lab.json").read_text())  # one document, printed once
    same_results(folder, document)


def test_ctrl_c_saves_the_state_and_gives_the_claim_back(tmp_path, monkeypatch):
    fit = working.fit

    def stopped_at_its_first_step(config, on_step):
        return fit(config, lambda step, loss: os.kill(os.getpid(), signal.SIGINT) if step == 0 else None)

    monkeypatch.setattr(working, "fit", stopped_at_its_first_step)
    with pytest.raises(Interrupted, match="Stopped in the run of identity, seed 0; its state is saved: the same"):
        run_lab(small_options(), small_recipe(), output=tmp_path / "lab")
    folder = LabFolder(tmp_path / "lab")
    assert folder.claims.holder("identity.seed-0") is None
    assert (tmp_path / "lab" / "runs" / "identity" / "seed-0" / "last").is_dir()


def test_what_is_done_so_far_is_told_where_nothing_is_free(tmp_path, monkeypatch):
    folder = LabFolder(tmp_path / "lab")

    def hold(config, on_step):
        raise KeyboardInterrupt

    monkeypatch.setattr(working, "fit", hold)
    with pytest.raises(KeyboardInterrupt):
        run_lab(small_options(), small_recipe(), output=folder.path)
    monkeypatch.undo()
    plan = folder.plan()
    assert plan is not None
    held = [folder.claims.take(job.name) for job in plan.jobs() if job.name != "window.seed-0"]
    assert all(held)
    document = run_lab(output=folder.path, wait=False)
    assert (document["complete"], document["runs_done"], document["costs"]) == (False, 1, None)
    tops = {row["name"]: row["top1"] for row in document["rows"]}
    assert tops["identity"] is None
    assert tops["window"]["high"] is None  # of one seed there is no interval
    assert not (folder.path / "lab.json").exists()


def test_a_training_that_diverges_is_a_result(tmp_path, no_costs):
    document = run_lab(
        small_options(mixers=["identity", "pooling"], seeds=1), small_recipe(lr=1e30), output=tmp_path / "lab"
    )
    assert document["complete"]
    assert document["comparisons"] == []
    for row in document["rows"]:
        assert row["top1"] is None
        assert "diverged" in row["runs"][0]["failed"]


def test_costs_that_another_process_measures_are_not_waited_for(tmp_path, no_costs):
    folder = LabFolder(tmp_path / "lab")
    run_lab(small_options(seeds=1), small_recipe(), output=folder.path)
    (folder.path / "lab.json").unlink()
    held = folder.claims.take("results")
    assert held is not None
    document = run_lab(output=folder.path, wait=False)
    assert (document["complete"], document["runs_done"], document["costs"]) == (False, 2, None)


def test_without_names_each_paper_has_its_mixer():
    assert [one.name for one in _candidates(LabConfig())] == list(DEFAULT_MIXERS)
    assert {MIXERS[name].family for name in DEFAULT_MIXERS} == {"", *FAMILIES}
    assert [one.name for one in _candidates(LabConfig(mixers=["all"]))] == all_mixers()
    assert len(_candidates(LabConfig(host="mat", mixers=["all"]))) == len(_candidates(LabConfig(host="mat"))) > 7


def test_how_long_it_may_take_is_told(done):
    *_, said = done
    assert said[0] == "4 trainings: 2 candidates with 2 seed(s) each"
    left = [line for line in said if " left, about " in line]
    assert [line.split()[0] for line in left] == ["3", "2", "1"]
    assert left[0].endswith("by one process")


# ---- mistakes -------------------------------------------------------------------------------------------------------


def refused(match, options=None, recipe=None, output="lab"):
    with pytest.raises(UserError, match=match):
        run_lab(options, recipe, output=output)


def test_other_options_than_the_plans_are_refused(done):
    folder, *_ = done
    options, recipe = small_options(), small_recipe()
    for changed, match in (
        (small_options(seeds=3), "--seeds 2, not 3"),
        (small_options(mixers=["window", "identity"]), r"--mixers \['identity', 'window'\], not"),
        (small_options(equal="macs"), "--equal 'params', not 'macs'"),
        (small_options(host_options={}), "--host_options"),
    ):
        refused(f"was begun with {match}", changed, recipe, folder)
    for changed, match in (
        (small_recipe(lr=0.5), "--lr 0.001, not 0.5"),
        (replace(recipe, data=replace(recipe.data, val_fraction=0.3)), "--data.val_fraction 0.2, not 0.3"),
    ):
        refused(f"was begun with {match}", options, changed, folder)
    # what does not change results may differ
    assert run_lab(options, small_recipe(checkpoint_every=7, device="auto"), output=folder)["complete"]


def test_arguments_without_an_effect_are_refused(done):
    folder, *_ = done
    refused("recipe has no effect without options", None, small_recipe(), folder)
    with pytest.raises(UserError, match="places has no effect with options"):
        run_lab(small_options(), small_recipe(), output=folder, places={"device": "cpu"})


def test_a_plan_never_leads_out_of_its_folder(done, tmp_path):
    folder, *_ = done
    stored = json.loads((folder / "plan.json").read_text())
    stored["candidates"][0]["folder"] = "../../elsewhere"
    made = LabFolder(tmp_path / "lab")
    made.begin()
    (made.path / "plan.json").write_text(json.dumps(stored))
    refused("plan.json is damaged.* the folders of its candidates", output=made.path)
    stored = json.loads((folder / "plan.json").read_text())
    stored["recipe"]["overwrite"] = True
    (made.path / "plan.json").write_text(json.dumps(stored))
    refused("plan.json is damaged.* overwrite is not taken from a recipe", output=made.path)
    assert not (tmp_path / "elsewhere").exists()
    (made.path / "plan.json").write_text((folder / "plan.json").read_text())
    (tmp_path / "other").mkdir()
    (made.path / "runs" / "identity").symlink_to(tmp_path / "other")
    refused("identity is a link", output=made.path)
    assert not list((tmp_path / "other").iterdir())


def test_other_libraries_and_data_are_refused(done, monkeypatch):
    folder, *_ = done
    with monkeypatch.context() as patch:
        patch.setattr("vitrail.lab.plan.versions", lambda: {"torch": "0.1"})
        refused("was begun with vitrail .*, and this is none: one table comes from one version", output=folder)
    with monkeypatch.context() as patch:
        patch.setattr(
            "vitrail.lab.laboratory.fingerprint", lambda data: replace(LabFolder(folder).plan().training, count=3)
        )
        refused("its training images have changed: 1,438 then, 3 now", output=folder)


@pytest.mark.parametrize(
    ("options", "recipe", "match"),
    [
        ({"mixers": ["windw", "identity"]}, {}, "Unknown mixer 'windw': did you mean window"),
        (
            {"mixers": ["no_such_module:Thing", "identity"]},
            {},
            "no_such_module cannot be imported: ModuleNotFoundError",
        ),
        ({"mixers": ["json:Thing", "identity"]}, {}, "module json has no Thing"),
        ({"mixers": ["window"]}, {}, "--mixers window is a single candidate"),
        ({"mixers": ["window", "window"]}, {}, "--mixers names 'window' twice"),
        ({"seeds": 0}, {}, "--seeds 0 must be 1 or more"),
        ({"budget": -1.0}, {}, "--budget -1.0 must be above 0"),
        ({"budget": 3.0}, {}, "--budget 3 cannot be reached: identity: .* no narrower network"),
        ({"host": "mats", "host_options": {}}, {}, "Unknown host 'mats': did you mean mat"),
        (
            {"host": "mat", "host_options": {}, "mixers": ["purr MLP"]},
            {},
            "Unknown ablation of mat 'purr MLP': .* pure",
        ),
        ({"host": "mat", "host_options": {}, "mixers": []}, {}, "Host mat: images of 32 x 32 .* enlarge them to 64"),
        ({"host_options": {"widht": 8}}, {}, "widht"),
        ({"mixer_options": {"windows": 3}}, {}, "has an option 'windows'"),
        ({"host": "mat", "mixers": [], "mixer_options": {}}, {}, "--host_options.width is for --host plain"),
        ({}, {"task": "detection"}, "--task detection cannot be compared"),
        ({}, {"lr": -1.0}, "--lr"),
        ({}, {"batch_size": 1 << 19}, "--batch_size 524288: a step of .* holds about .* GiB"),
        ({}, {"data": {"name": "folder"}}, "root"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path, options, recipe, match):
    if "data" in recipe:
        recipe = {"data": replace(small_recipe().data, **recipe["data"])}
    refused(match, small_options(**options), small_recipe(**recipe), tmp_path / "lab")
    assert not (tmp_path / "lab").exists()


def test_folders_that_are_not_a_laboratorys(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("mine")
    refused("holds thesis.tex and is no laboratory's folder", small_options(), small_recipe(), mine)
    refused("thesis.tex is a file; name a folder", small_options(), small_recipe(), mine / "thesis.tex")
    refused("--output is empty", small_options(), small_recipe(), "  ")
    refused("There is no laboratory in .* to go on with", output=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / ".vitrail-lab").touch()
    (linked / "runs").symlink_to(mine)
    refused("runs is a link", small_options(), small_recipe(), linked)
    assert os.listdir(mine) == ["thesis.tex"]


def test_a_damaged_plan_is_told(done, tmp_path):
    folder, *_ = done
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / ".vitrail-lab").touch()
    plan = json.loads((folder / "plan.json").read_text())
    for change, match in (
        ({"format": 99}, "written by another version of vitrail .format 99"),
        ({"budget": "much"}, "is damaged, so that the laboratory cannot go on: budget"),
    ):
        (broken / "plan.json").write_text(json.dumps({**plan, **change}))
        refused(match, output=broken)
    (broken / "plan.json").write_text("{")
    refused("is no JSON", output=broken)


def test_ablations_of_a_family_inside_its_own_network(tmp_path, no_costs):
    options = LabConfig(mixers=["full", "no shift"], host="pslt", seeds=1)
    document = run_lab(options, small_recipe(max_steps=1), output=tmp_path / "lab")
    rows = {row["name"]: row for row in document["rows"]}
    assert {row["model"] for row in rows.values()} == {"pslt_tiny"}
    assert rows["no shift"]["model_options"]["shift"] is False
    assert rows["no shift"]["folder"] == "no_shift"
    assert rows["full"]["reached"] == document["budget"]
    assert (tmp_path / "lab" / "runs" / "no_shift" / "seed-0" / "best.safetensors").is_file()


# ---- classes of a user's own ----------------------------------------------------------------------------------------

OWN = '''
import torch
class Blur(torch.nn.Module):
    """<script>alert(1)</script>"""
    def __init__(self, dim):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(dim, 1, 1))
    def forward(self, x):
        return self.scale * torch.nn.functional.avg_pool2d(x, 3, 1, 1)
'''


def test_a_class_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "blur_mixers_of_a_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "blur_mixers_of_a_test", raising=False)
    name = "blur_mixers_of_a_test:Blur"
    options, recipe = small_options(mixers=["identity", name], seeds=1), small_recipe()
    document = run_lab(options, recipe, output="lab")
    row = next(row for row in document["rows"] if row["name"] == name)
    assert row["folder"] == "blur_mixers_of_a_test_Blur"
    assert row["memory_mb"] is None  # measured in a process that does not know the class
    assert row["top1"]["mean"] >= 0
    assert "<script>alert" not in Path("lab/lab.html").read_text()
    refused("no class is imported because a file names it; give all options again", output="lab")
    assert run_lab(options, recipe, output="lab")["complete"]
