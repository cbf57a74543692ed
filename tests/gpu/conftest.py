"""The device of a test: the processor in every run of the tests, the GPU with `pytest -m gpu`."""

import os
from collections.abc import Iterator

import pytest
import torch

from vitrail.utils.tf32 import tf32

# deterministic products; CUDA reads it once, when it starts
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

NO_GPU = "no usable CUDA device: this test is for a machine with a GPU"


def usable(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    return torch.device(name)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> torch.device:
    return usable(request.param)


@pytest.fixture(params=[pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)])
def compiling_device(request) -> Iterator[torch.device]:
    """For tests that compile, which takes too long on the processor to do it in every run."""
    yield usable(request.param)
    torch.compiler.reset()


@pytest.fixture
def gpu() -> torch.device:
    """For tests that mean nothing on a processor; mark them `gpu`."""
    return usable("cuda")


@pytest.fixture(autouse=True)
def _no_tf32() -> Iterator[None]:
    with tf32(False):
        yield
