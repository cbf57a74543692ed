"""The page and tables of made-up results, whose names are as hostile as a class's name could be."""

import json
from itertools import pairwise

import numpy as np
import pytest
from lab_helpers import small_options, small_recipe

from browser_helpers import Reader, browser, check_everywhere
from vitrail.data.fingerprint import Fingerprint
from vitrail.lab.costs import Costs
from vitrail.lab.measures import Measures, Rise, Span, packed
from vitrail.lab.page import lab_page
from vitrail.lab.plan import LabFolder, Plan, PlannedCandidate, folders_of
from vitrail.lab.results import results
from vitrail.lab.table import lines, markdown, p_value, title

HOSTILE = 'own:<img src="x" onerror="alert(1)">\x1b[31m|'
NAMES = ["identity", "window", "mat", HOSTILE, "ladder", "ems", "partial", "global", "csa"]


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """Nine candidates, three seeds; of the last one a seed diverged."""
    rng = np.random.default_rng(0)
    folder = LabFolder(tmp_path_factory.mktemp("page"))
    folder.begin()
    candidates = [
        PlannedCandidate(name, place, "lab_plain", {"mixer": name}, params=10**6 + i, macs=10**7, reached=1e7)
        for i, (name, place) in enumerate(zip(NAMES, folders_of(NAMES), strict=True))
    ]
    candidates[1].remark = "window: 3.1 % over the budget."
    known = Fingerprint(count=200, classes=["a", "b"], names="", truth="", files="")
    plan = Plan(
        small_options(mixers=NAMES, seeds=3, equal="macs"),
        small_recipe(),
        budget=1e7,
        image_size=(32, 32),
        candidates=candidates,
        training=known,
        validation=known,
    )
    for job in plan.jobs():
        hits = (rng.random(200) < 0.4 + 0.05 * candidates.index(job.candidate)).astype(int)
        history = [{"epoch": e, "val_top1": 30.0 + 5 * e, "train_loss": 2.0 - 0.2 * e} for e in range(4)]
        measures = Measures(job.seed, 100 * float(hits.mean()), packed(hits), 200, seconds=12.0, history=history)
        if job.candidate.name not in ("identity", "csa"):
            measures.spans = [Span(f"stages.{s}.blocks.0", s, 1.0 + s, 8.0 + s, 9.0 + s) for s in range(4)]
        measures.rises = [Rise(s, 16 >> s, None if s == 3 else -1.0 - s, 0.1) for s in range(4)]
        if job.candidate.name == "csa" and job.seed == 2:
            measures = Measures(job.seed, failed="The training diverged.")
        folder.write_measures(job, measures)
    machine = {"cpu": "a <b>fast</b> one", "device": "cpu", "threads": 1, "load": [0.1, 0.2]}
    costs = Costs(dict.fromkeys(NAMES, 2.5), dict.fromkeys(NAMES, (2.0, 3.0)), {**dict.fromkeys(NAMES, 1.5)}, machine)
    costs.memory_mb[HOSTILE] = None
    return json.loads(json.dumps(results(plan, folder, costs)))


def test_rows_are_ranked_and_neighbours_compared(document):
    means = [row["top1"]["mean"] for row in document["rows"]]
    assert means == sorted(means, reverse=True)
    names = [row["name"] for row in document["rows"]]
    assert [(one["better"], one["worse"]) for one in document["comparisons"]] == list(pairwise(names))
    assert {one["difference"]["count"] for one in document["comparisons"]} == {2, 3}  # pairs of the seeds both have
    for one in document["comparisons"]:
        assert one["p_images"] <= one["p_images_holm"] <= 1
    spans = {row["name"]: row["span_pixels"] for row in document["rows"]}
    assert spans["identity"] is None
    assert spans["mat"] == pytest.approx(9.5)


def test_markdown(document):
    text = markdown(document)
    assert text.startswith("9 candidates of 10.00 M multiply-adds in plain, 3 seed(s), 200 images of digits.")
    assert "\x1b" not in text
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert [len(table) for table in tables] == [11, 10, 11, 11]
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table}) == 1  # the same columns in every line
    assert "window: 3.1 % over the budget." in text
    assert any("csa, seed 2: The training diverged." in line for line in lines(document))
    assert "24 of 27 runs done" in title({**document, "complete": False, "runs_done": 24})


def test_probabilities_in_words():
    assert [p_value(p) for p in (None, 0.2, 0.012, 0.0042, 1e-9)] == ["-", "0.20", "0.01", "0.0042", "< 0.0001"]


def test_equal_and_missing_values_can_be_drawn(document):
    alike = json.loads(json.dumps(document))
    for row in alike["rows"]:
        for run in row["runs"]:
            run["history"] = [{"epoch": 0, "val_top1": 10.0, "train_loss": None}]
    assert "validation top-1" in lab_page(alike)
    empty = {
        **alike,
        "comparisons": [],
        "costs": None,
        "rows": [{**row, "runs": [], "top1": None} for row in alike["rows"]],
    }
    assert "There is nothing to draw" in lab_page(empty)


def test_the_page_in_a_browser(document, tmp_path):
    file = tmp_path / "lab.html"
    file.write_text(lab_page(document))
    with browser() as started:
        check_everywhere(started, file, tmp_path)
        reader = Reader(started, file)
        text = reader.page.inner_text("main")
        for name in NAMES:
            assert name[:10] in text
        assert reader.page.locator("main img").count() == 0  # the hostile name is text
        assert reader.page.locator("figure.chart").count() >= 3 + 9
