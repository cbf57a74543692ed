"""Our networks against the stored outputs of reference implementations; `table.py` prints the same comparison."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import table
import torch
from cases import cases, folder, image, training
from compare import TOLERANCE, apart, difference, flat, measure, network, outputs, stats

CASES = cases()
needs_outputs = pytest.mark.skipif(not CASES, reason="no stored outputs of reference implementations beside test data")
every_case = pytest.mark.parametrize("case", CASES or [None], ids=str)

#: PSLT's third stage reaches deviations of 30, where float32 sums lose more
EAGER = {"pslt": TOLERANCE, "lvt": 2e-5, "pale": 2e-5, "emsnet": 2e-5, "mat": 2e-5, "partialformer": 2e-5}
#: a case of every way in which files name and wrap their entries
FORMS = (
    "pslt_tiny",
    "pslt/detection",
    "lvt_r1",
    "lvt_backbone",
    "volo_d0",
    "pale_tiny",
    "emsnet_xxtiny",
    "mat_1",
    "partialformer_b0",
)


def case_of(family, key):
    return next(case for case in CASES if (case.family, case.key) == (family, key))


@needs_outputs
@every_case
def test_outputs_are_those_of_the_reference(case, tmp_path):
    model = network(case, tmp_path)
    x = case.image()
    with torch.inference_mode():
        logits, features = outputs(model, x)
        if logits is not None:
            assert torch.equal(model(x), logits)
    assert difference(case, logits, features).within(EAGER[case.family])
    for name, value in (("mean", logits), ("std", logits)):
        if f"logits_{name}" in case.golden and case.family in ("pslt", "mat", "pale"):
            assert apart(getattr(value, name)(), case.golden[f"logits_{name}"]) < 1e-5


@needs_outputs
@pytest.mark.parametrize("case", [case for case in CASES if case.key in FORMS] or [None], ids=str)
def test_every_form_of_file_holds_the_same(case, tmp_path):
    published, plain = (network(case, tmp_path, suffix).state_dict() for suffix in (".pth", ".safetensors"))
    assert published.keys() == plain.keys()
    assert all(torch.equal(plain[name], value) for name, value in published.items())


@needs_outputs
@pytest.mark.slow
@pytest.mark.timeout(1800)
@every_case
def test_compiled_outputs_are_those_of_the_reference(case, tmp_path):
    assert measure(case, tmp_path, "compiled").within(TOLERANCE)


@needs_outputs
@torch.no_grad()
def test_lvt_mixes_tokens_in_training_as_the_authors_code(tmp_path):
    golden = training()["mix_token"]
    model = network(case_of("lvt", golden["model"]), tmp_path, mix_token=True).train()
    box = golden["bbox_r1_c1_r2_c2"]
    classes, tokens, used = model.forward_token_labeling(image(golden["input"]), box)
    assert list(used) == box
    assert list(tokens.shape) == golden["aux_shape"]
    close = {"rtol": 1e-4, "atol": 2e-5}
    torch.testing.assert_close(stats(classes), flat(golden["cls_stats"]), **close)
    torch.testing.assert_close(stats(tokens), flat(golden["aux_stats"]), **close)
    rows = {
        "cls_row1_first4": classes[1],
        "aux_last_token_row1_first4": tokens[1, -1],
        "aux_token15_row1_first4": tokens[1, 15],
    }
    for name, row in rows.items():
        torch.testing.assert_close(row[:4], torch.tensor(golden[name]), **close)


# ---- the comparison itself ------------------------------------------------------------------------------------------


@needs_outputs
@pytest.mark.parametrize("family", EAGER)
def test_every_stored_run_is_a_case(family):
    runs = len(re.findall(r'"feature_stats":\s*\{', (folder() / f"{family}.json").read_text()))
    chosen = [str(case) for case in CASES if case.family == family]
    assert runs > 0
    assert len(chosen) == len(set(chosen)) == runs


@needs_outputs
@torch.inference_mode()
def test_the_comparison_sees_small_changes(tmp_path):
    case = case_of("lvt", "lvt_gap_head")
    logits, features = outputs(network(case, tmp_path), case.image())
    moved = logits.clone()
    moved[-1, 7] += 0.25
    assert difference(case, moved, features).logits == pytest.approx(0.25, rel=1e-3)
    deviation = case.golden["feature_stats"]["stage3"][1]
    found = difference(case, logits, {**features, "stage3": features["stage3"] + 0.5})
    assert (found.features, found.where) == (pytest.approx(0.5 / deviation, rel=1e-3), "stage3")
    assert not difference(case, logits * torch.nan, features).within(TOLERANCE)
    with pytest.raises(AssertionError):
        difference(case, logits[:1], features)
    with pytest.raises(KeyError, match="logits_last2"):
        difference(dataclasses.replace(case, golden={**case.golden, "logits_last2": [0, 0]}), logits, features)


@needs_outputs
def test_the_table_ends_with_1_beyond_the_tolerance(tmp_path):
    """Of two networks, one has a stored logit that is wrong by twice the tolerance."""
    (tmp_path / "parity").mkdir()
    shutil.copy(folder() / "fill.py", tmp_path / "parity")
    content = json.loads((folder() / "lvt.json").read_text())
    content["models"] = {name: content["models"][name] for name in ("lvt_r1", "lvt_backbone")}
    content["models"]["lvt_r1"]["golden"][0]["logits_first8"][2] += 2e-4
    (tmp_path / "parity" / "lvt.json").write_text(json.dumps(content))
    command = [sys.executable, Path(__file__).with_name("table.py"), "lvt", "--json"]
    environment = {**os.environ, "VITRAIL_TEST_DATA": str(tmp_path / "data")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    wrong, right = json.loads(done.stdout)
    assert (wrong["model"], wrong["height"], wrong["width"], wrong["seed"], wrong["batch"]) == (
        "lvt_r1",
        224,
        224,
        0,
        2,
    )
    assert wrong["eager"]["logits"] == pytest.approx(2e-4, abs=2e-5)
    assert max(wrong["eager"]["features"], right["eager"]["features"]) < 2e-5


@needs_outputs
@pytest.mark.parametrize("form", [[], ["--markdown"]], ids=str)
def test_the_table_prints_every_row_and_ends_with_0(form, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["table.py", "lvt", *form])
    monkeypatch.setattr(table, "cases", lambda *_: [case_of("lvt", "lvt_r1"), case_of("pslt", "pslt/detection")])
    assert table.main() == 0
    printed = capsys.readouterr().out
    assert "2 of 2 comparisons within 0.0001." in printed
    (dense,) = (line for line in printed.splitlines() if "256x320" in line)
    assert all(word in dense for word in ('{"mask_padding": false}', "0 / 1", "maps only"))
