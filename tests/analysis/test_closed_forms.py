"""Every analysis agrees with its closed forms, and docs/analysis.md shows the same table."""

import json
from pathlib import Path

import closed_forms
import pytest
from closed_forms import CASES, Case, Outcome, main, markdown, outcome

PAGE = Path(__file__).parents[2] / "docs" / "analysis.md"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees(case):
    found = outcome(case)
    assert found.agrees, f"{case.expected} expected, {found.values} found"
    cells = found.row()[:5]
    assert f"| {' | '.join(cells)} |" in PAGE.read_text(encoding="utf-8"), "write `closed_forms.py --markdown` there"


def test_the_page_has_every_case_and_no_other():
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("| method | case |") :].split("\n\n")[0].splitlines()
    assert [row.split(" | ")[1] for row in table[2:]] == [case.name for case in CASES]
    assert table[:2] == markdown([]).splitlines()


def test_a_case_that_differs_ends_with_1(monkeypatch, capsys):
    right = Case("gradcam: right", [1, 2], 0.1, lambda: [1.05, 2])
    wrong = Case("gradcam: wrong", [1, 2], 0.1, lambda: [1.05, 2.2])
    monkeypatch.setattr(closed_forms, "CASES", [right, wrong])
    assert main(["--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [one["verdict"] for one in told] == ["agrees", "DIFFERS"]
    assert main(["right"]) == 0
    assert "1 of 1 cases agree" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["nothing of the kind"])


def test_undefined_and_missing_numbers_differ():
    case = Case("gradcam: x", [0.0], 1.0, list)
    assert not Outcome(case, [float("nan")]).agrees
    assert not Outcome(case, [0.0, 0.0]).agrees
