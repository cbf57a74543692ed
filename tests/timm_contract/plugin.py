"""A pytest plugin that makes timm's model tests see our networks and nothing else."""

import os

import timm

import vitrail

_names = os.environ.get("VITRAIL_CONTRACT_MODELS", "").split() or vitrail.list_models()


def _list_models(filter="", module="", pretrained=False, **_):
    # tests of weights and of other libraries' name patterns have no business with us
    return [] if pretrained or filter else list(_names)


timm.list_models = _list_models


def pytest_configure(config):
    for mark in (
        "base",
        "forward",
        "backward",
        "cfg",
        "cfg_nonstd",
        "torchscript",
        "features",
        "fxforward",
        "fxbackward",
    ):
        config.addinivalue_line("markers", f"{mark}: timm's own mark")
