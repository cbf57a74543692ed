import pytest
import torch
from torch import nn

from vitrail.config.train import TrainConfig
from vitrail.errors import UserError
from vitrail.lab import checks
from vitrail.lab.checks import check_memory, free_bytes, step_bytes, try_step


class Chain(nn.Module):
    """Convolutions without bias, each of which keeps its input of a known size."""

    def __init__(self, count: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 1, bias=False) for _ in range(count))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x.mean((2, 3))


def test_bytes_of_a_step_in_closed_form():
    for count, batch, side in ((1, 2, 8), (5, 4, 16)):
        inputs, weights = count * batch * 3 * side * side * 4, count * 9 * 4
        found = step_bytes(lambda count=count: Chain(count), (side, side), batch)
        # the weights are kept for the backward pass, too
        assert found == inputs + weights + 4 * weights


def test_bytes_of_what_looks_at_values_are_not_known():
    class Looks(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    assert step_bytes(Looks, (8, 8), 2) is None


def test_too_little_memory_is_told(monkeypatch):
    assert 1 << 20 < free_bytes("cpu") < 1 << 50
    monkeypatch.setattr(checks, "free_bytes", lambda device: 1 << 20)
    small, large = TrainConfig(batch_size=2, device="cpu"), TrainConfig(batch_size=4096, device="cpu")
    check_memory("chain", lambda: Chain(2), (8, 8), small)
    with pytest.raises(UserError, match=r"--batch_size 4096: a step of chain on images of 8x8 holds about 0\.0 GiB"):
        check_memory("chain", lambda: Chain(2), (8, 8), large)
    check_memory("chain", lambda: Chain(2), (8, 8), TrainConfig(batch_size=4096, accumulate=64, device="cpu"))


class Ten(nn.Module):
    def __init__(self, outputs: int = 10, failing: bool = False):
        super().__init__()
        self.linear, self.failing = nn.Linear(3, outputs), failing

    def forward(self, x):
        if self.failing and self.training:
            raise RuntimeError("only \x1b[31mfor\nprediction")
        return self.linear(x.mean((2, 3)))


def test_a_step_is_tried():
    network = Ten()
    state = torch.get_rng_state()
    try_step("ten", network, (8, 6), 10)
    assert all(p.grad is None for p in network.parameters())
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(UserError, match=r"ten gives \(2, 7\) for 2 images of 8x6, not \(2, 10\)"):
        try_step("ten", Ten(7), (8, 6), 10)
    with pytest.raises(UserError, match=r"ten cannot be trained on images of 8x6: RuntimeError: only \\x1b\[31mfor$"):
        try_step("ten", Ten(failing=True), (8, 6), 10)
