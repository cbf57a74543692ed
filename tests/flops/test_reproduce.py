import json
import subprocess
import sys

import pytest

from vitrail.errors import UserError
from vitrail.flops import reproduce as module
from vitrail.flops.reproduce import PAPERS, compare, read_rows, reproduce, verdicts


@pytest.mark.parametrize(
    ("reported", "counted", "verdict"),
    [
        ("4.3", 4.26654, "match"),
        ("16.0", 16.066864, "truncated"),
        ("2.0", 1.9247, "residual"),
        ("22", 21.748712, "match"),
        ("0.5", 0.55, "truncated"),
        ("0.6", 0.55, "match"),
        ("0.7", 0.65, "match"),  # half up, whichever neighbour is even
    ],
)
def test_values_are_compared_at_their_own_precision(reported, counted, verdict):
    assert compare(reported, counted) == verdict


@pytest.mark.parametrize("family", PAPERS)
def test_no_row_departs_from_the_expected_counts(family):
    results = list(reproduce(family))
    assert [(r.table, r.row, r.reason) for r in results if r.verdict == "wrong"] == []
    assert verdicts(results)["rows"] == len(read_rows(family))
    assert all(r.reason for r in results if r.verdict in ("residual", "not_countable"))


def test_a_wrong_count_is_found(monkeypatch):
    row = {**read_rows("emsnet")[0], "expected_params_m": "2.5694"}
    monkeypatch.setattr(module, "read_rows", lambda family: [row])
    (result,) = reproduce("emsnet")
    assert result.verdict == "wrong"
    assert "2.569370 M parameters" in result.reason


def test_a_network_that_lost_its_match_is_found(monkeypatch):
    row = {**read_rows("emsnet")[1], "verdict": "residual"}
    monkeypatch.setattr(module, "read_rows", lambda family: [row])
    assert next(iter(reproduce("emsnet"))).verdict == "wrong"


def test_unknown_names_are_answered():
    with pytest.raises(UserError, match="pslt"):
        list(reproduce("psltt"))
    with pytest.raises(UserError, match="Table 1"):
        list(reproduce("pale", "Table 11"))


def test_the_command_prints_a_table_and_json():
    command = [sys.executable, "-m", "vitrail", "reproduce", "partialformer", "--table", "Table 5.1"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "5 rows, 5 match, 0 truncated, 0 residual, 0 not_countable, 0 config, 0 wrong" in out
    found = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert found["totals"]["match"] == 5
    assert found["rows"][0]["params"] == 5.298672
