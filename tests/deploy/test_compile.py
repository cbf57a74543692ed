"""`vitrail.compile`: frozen weights, the global setting, outputs that are compared."""

import threading

import pytest
import torch
from torch import nn
from torch._inductor import config

import vitrail
from vitrail.deploy.fuse import compiled
from vitrail.deploy.fuse.compiled import frozen_weights


class Scaled(nn.Module):
    """x -> x * weight, with an attribute of its own."""

    meta = "described"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        return x * self.weight


@pytest.fixture
def eager(monkeypatch):
    """`torch.compile` replaced: the module itself, which records the setting that it runs under."""
    seen = []

    def record(forward, mode, dynamic):
        def run(x):
            seen.append(config.freezing)
            return forward(x)

        return run

    monkeypatch.setattr(torch, "compile", record)
    return seen


@pytest.mark.parametrize("before", [False, True])
def test_weights_are_frozen_during_calls_alone(eager, before):
    with config.patch(freezing=before):
        fast = vitrail.compile(Scaled())
        assert torch.equal(fast(torch.ones(2)), torch.full((2,), 3.0))
        assert eager == [True]
        assert config.freezing is before
        with pytest.raises(ValueError, match="inside"), frozen_weights():
            raise ValueError("inside")
        assert config.freezing is before


def test_the_setting_is_restored_after_calls_that_overlap():
    assert config.freezing is False
    first, second = threading.Event(), threading.Event()

    def outer():
        with frozen_weights():
            first.set()
            second.wait(5)

    thread = threading.Thread(target=outer)
    thread.start()
    assert first.wait(5)
    with frozen_weights():
        second.set()
        thread.join()
        assert config.freezing is True  # the call that began second still runs
    assert config.freezing is False


def test_the_copy_is_independent_and_keeps_the_networks_attributes(eager):
    network = Scaled().train()
    fast = vitrail.compile(network)
    with torch.no_grad():
        network.weight.fill_(5)
    out = fast(torch.ones(1))
    assert out.item() == 3
    assert not out.requires_grad
    assert network.training
    assert not fast.training
    assert fast.meta == "described"
    with pytest.raises(AttributeError):
        _ = fast.nothing


def test_wrong_outputs_are_refused(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda forward, mode, dynamic: lambda x: forward(x) * 1.01)
    assert vitrail.compile(Scaled(), check=False)(torch.ones(1)).item() == pytest.approx(3.03)
    fast = vitrail.compile(Scaled())
    with pytest.raises(RuntimeError, match=r"changed the outputs of Scaled by 0.03"):
        fast(torch.ones(1))


def test_networks_of_one_class_share_no_compiled_code(monkeypatch):
    codes = []
    monkeypatch.setattr(torch, "compile", lambda function, mode, dynamic: codes.append(function.__code__) or function)
    fast = [vitrail.compile(Scaled()) for _ in range(2)]
    with torch.no_grad():
        fast[1].network.weight.fill_(4)
    assert codes[0] is not codes[1]
    assert [one(torch.ones(1)).item() for one in fast] == [3, 4]


def test_every_size_is_compared_once(eager, monkeypatch):
    calls = []
    monkeypatch.setattr(compiled, "refuse_changes", lambda *_, **__: calls.append(1))
    fast = vitrail.compile(Scaled())
    for size in (1, 2, 1, 2, 3):
        fast(torch.ones(size))
    assert len(calls) == 3


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_outputs_at_two_sizes():
    network = vitrail.create_model("mat_1", num_classes=10, depths=(1, 1, 1, 1)).eval()
    fast = vitrail.compile(network, check=False)
    for side in (64, 96):
        x = torch.rand(1, 3, side, side)
        with torch.no_grad():
            expected = network(x)
        assert (fast(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
