"""What the property tests share: narrow networks and mixers with random weights, sizes to draw, ways to compare."""

from collections.abc import Callable
from functools import cache

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from network_helpers import NARROW, randomise, small
from vitrail.models.emsnet import EMSNet
from vitrail.models.lvt import CSA, RASA
from vitrail.models.mat import TOKEN_MERGES, MatAttention, WindowAttention
from vitrail.models.pale import MIXERS as PALE_MIXERS
from vitrail.models.pale import PaleAttention
from vitrail.models.partialformer import FullAttention, PartialAttention
from vitrail.models.pslt import LadderAttention, LadderBlock

quick = settings(max_examples=10, deadline=None)
fewer = settings(max_examples=4, deadline=None)

seeds = st.integers(0, 2**16)
sides = st.integers(1, 13)
image_sides = st.integers(32, 97)
#: how many windows, groups or patches along an axis
counts = st.integers(1, 3)

# ---- networks -------------------------------------------------------------------------------------------------------


@cache
def network(family: str, seed: int = 0, **options) -> nn.Module:
    """A narrow network of the family, every weight and statistic random, in float64 and in evaluation mode.

    One instance serves all tests: they leave it as it was.
    """
    assert family in NARROW, f"tests/network_helpers.py: NARROW has no options of family {family}"
    return randomise(small(family, **{**NARROW[family], **options}), seed)


# ---- mixers ---------------------------------------------------------------------------------------------------------

DIM = 16


class Twice(nn.Module):
    """A mixer of two maps as one of one map, given to it twice."""

    def __init__(self, mixer: nn.Module):
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x, x)


def emsnet_mixer(**options) -> nn.Module:
    widths = {"embed_dims": (DIM, DIM, DIM, DIM), "depths": (1, 1, 1, 1), "head_dim": 4}
    return EMSNet(**{**widths, **options}).stages[0].blocks[0].mixer


#: every token mixer of the library, from maps of `DIM` channels to maps of the same shape
MIXERS: dict[str, Callable[[], nn.Module]] = {
    "pslt": lambda: LadderAttention(DIM, 2, 4),
    "pslt shifted": lambda: LadderAttention(DIM, 2, 4, 1),
    "pslt shifted back": lambda: LadderAttention(DIM, 2, 4, -1, pad_mode="paper"),
    "pslt delivered": lambda: Twice(LadderAttention(DIM, 2, 4, 1, delivered=True)),
    "pslt ladder": lambda: LadderBlock(DIM, 2, (0, 1), window_size=4),
    "csa": lambda: CSA(DIM, 2),
    "outlook": lambda: CSA(DIM, 2, shared_value=True),
    "rasa": lambda: RASA(DIM, 2, 2),
    "rasa padded": lambda: RASA(DIM, 2, 4, sr_pad=True, state="previous", recursions=3),
    **{f"pale {name}": lambda name=name: PaleAttention(DIM, 4, name, (3, 2)) for name in PALE_MIXERS},
    "emsnet": emsnet_mixer,
    "emsnet added": lambda: emsnet_mixer(channel_split=False, mask_border=True, whiten="spatial"),
    "mat window": lambda: WindowAttention(DIM, 2, 4),
    **{f"mat {merge}": lambda merge=merge: MatAttention(DIM, 2, 4, token_merge=merge) for merge in TOKEN_MERGES},
    "partial": lambda: Twice(PartialAttention(DIM, 2, (1, 4))),
    "full": lambda: Twice(FullAttention(DIM, 2)),
}


def mixer(name: str, seed: int = 0) -> nn.Module:
    """A mixer of `MIXERS` with random weights, in float64."""
    return randomise(MIXERS[name](), seed)


def random_map(seed: int, height: int, width: int, batch: int = 2, dim: int = DIM) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, dim, height, width, generator=generator, dtype=torch.float64)


# ---- comparisons ----------------------------------------------------------------------------------------------------


def assert_same(ours: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


def outputs_and_gradients(function: Callable[..., Tensor], module: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """The output, and the gradients of a random sum of it for the inputs and every parameter of `module`."""
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    out = function(*inputs)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    wanted = [*inputs, *module.parameters()]
    gradients = torch.autograd.grad((out * weight).sum(), wanted, allow_unused=True)
    return [out.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip(wanted, gradients, strict=True))]


def assert_same_function(ours: Callable[..., Tensor], expected: Callable[..., Tensor], module: nn.Module, *inputs):
    """Same outputs and same gradients, both with the weights of `module`."""
    pairs = (outputs_and_gradients(function, module, *inputs) for function in (ours, expected))
    for a, b in zip(*pairs, strict=True):
        assert_same(a, b)
