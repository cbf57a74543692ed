"""Every network as a first implementer writes it from its paper: same weights, same outputs, no thought of speed.

Maps in NCHW memory, linear layers on permuted tokens, explicit softmax, windows by padding, rolling and reshaping,
masks painted in every call, unfold and fold, sorting and gathering. These are what speed is measured against where the
authors published no code, and beside it where they did: their code must not be copied here, so it is never timed.

Default options only, which is what the registered networks have.
"""

import copy

from torch import Tensor, nn

from vitrail.deploy.export.backends.onnx import TransposedPropagate
from vitrail.layers import Mlp
from vitrail.models.emsnet import ConvAttention, GlobalAttention, Propagate, Whiten
from vitrail.models.lvt import CSA, RASA
from vitrail.models.mat import BilinearPatchEmbed, MatAttention
from vitrail.models.pale import PaleAttention, SeparableConv
from vitrail.models.partialformer import FullAttention, PartialAttention
from vitrail.models.pslt import LadderAttention
from vitrail.models.pyramid import Pyramid

from . import emsnet, lvt, mat, pale, partialformer, pslt, tokens

#: what is written otherwise than in the library, by its class there
MODULES: dict[type[nn.Module], type[nn.Module]] = {
    Mlp: tokens.LiteralMlp,
    LadderAttention: pslt.LiteralLadder,
    CSA: lvt.LiteralCSA,
    RASA: lvt.LiteralRASA,
    PaleAttention: pale.LiteralPale,
    SeparableConv: pale.LiteralSeparable,
    Propagate: TransposedPropagate,
    Whiten: emsnet.LiteralWhiten,
    ConvAttention: emsnet.LiteralConvAttention,
    GlobalAttention: emsnet.LiteralGlobalAttention,
    MatAttention: mat.LiteralMat,
    BilinearPatchEmbed: mat.LiteralBilinear,
    PartialAttention: partialformer.LiteralPartial,
    FullAttention: partialformer.LiteralFull,
}


class LiteralPyramid(Pyramid):
    """The backbone on maps in whatever memory they come."""

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm(self.stages(self.stem(x)))


def literal(network: Pyramid) -> Pyramid:
    """A copy of one of our networks in literal form, with the same state dict."""
    twin = copy.deepcopy(network)
    for module in twin.modules():
        # the parameters stay where and what they are: only what is done with them changes
        module.__class__ = MODULES.get(type(module), type(module))
    kind = type(twin)
    twin.__class__ = type(f"Literal{kind.__name__}", (LiteralPyramid, kind), {})
    return twin
