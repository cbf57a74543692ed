import time

import pytest
import torch

from vitrail.deploy.fuse.kernels import chosen_kernels, fastest, forget_kernels


@pytest.fixture(autouse=True)
def _nothing_chosen():
    forget_kernels()
    yield
    forget_kernels()


def sleeping(seconds: float, calls: list[float]):
    def kernel(x):
        calls.append(seconds)
        time.sleep(seconds)
        return x

    return lambda: kernel


def test_the_clearly_faster_kernel_is_taken():
    calls: list[float] = []
    makers = {"slow": sleeping(0.004, calls), "fast": sleeping(0.001, calls)}
    fastest("case", makers, torch.zeros(1))
    assert chosen_kernels() == {"case": "fast"}


def test_a_case_is_measured_once():
    calls: list[float] = []
    makers = {"a": sleeping(0.001, calls), "b": sleeping(0.002, calls)}
    fastest("case", makers, torch.zeros(1))
    measured = len(calls)
    fastest("case", makers, torch.zeros(1))(torch.zeros(1))
    assert len(calls) == measured + 1
    fastest("another case", makers, torch.zeros(1))
    assert len(calls) > measured + 1


def test_the_first_kernel_stays_unless_another_gains_enough(monkeypatch):
    seconds = {"first": 1.0, "second": 0.96, "third": 0.94}
    monkeypatch.setattr("vitrail.deploy.fuse.kernels._seconds", lambda kernel, x: seconds[kernel(x)])
    makers = {name: (lambda name=name: lambda x: name) for name in seconds}
    assert fastest("a", {k: makers[k] for k in ("first", "second")}, torch.zeros(1))(None) == "first"
    assert fastest("b", makers, torch.zeros(1))(None) == "third"


def test_a_kernel_without_rival_is_not_timed():
    calls: list[float] = []
    fastest("case", {"only": sleeping(0.0, calls)}, torch.zeros(1))
    assert calls == []


def test_what_was_chosen_is_a_copy():
    fastest("case", {"only": sleeping(0.0, [])}, torch.zeros(1))
    chosen_kernels().clear()
    assert chosen_kernels() == {"case": "only"}
