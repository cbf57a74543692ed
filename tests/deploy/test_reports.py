"""Exports are nobody else's business: the tools behind them send nothing."""

import os
import subprocess
import sys

import pytest

from vitrail.deploy.export.backends.base import unreported

CONVERT = """
import torch
from vitrail.deploy.export.backends.base import quiet, require

openvino = require("openvino", "openvino")
with quiet():
    openvino.convert_model(torch.nn.Linear(2, 2), example_input=torch.ones(1, 2))
from openvino_telemetry import Telemetry
print(Telemetry().consent)
"""


def test_the_converter_has_no_consent_to_report(tmp_path):
    pytest.importorskip("openvino_telemetry")
    variables = ("CI", "TF_BUILD", "JENKINS_URL")
    env = {**{k: v for k, v in os.environ.items() if k not in variables}, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", CONVERT], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


@pytest.mark.parametrize("before", [None, "false"])
def test_the_environment_is_as_before(monkeypatch, before):
    monkeypatch.delenv("CI", raising=False)
    if before is not None:
        monkeypatch.setenv("CI", before)
    with unreported():
        assert os.environ["CI"] == "true"
    assert os.environ.get("CI") == before
