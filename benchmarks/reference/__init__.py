"""Reference forms: every network as its paper words it, without optimisation, with the same weights and outputs.

Maps in NCHW memory, linear layers on permuted tokens, explicit softmax, windows by padding, rolling and reshaping,
masks computed in every call, unfold and fold, sorting and gathering. The library's speed is measured against them. The
authors' code, where there is any, may not be copied here, so it is never timed.

They support the default options only, which the registered networks have.
"""

import copy
from collections import OrderedDict

from torch import Tensor, nn

from vitrail.deploy.export.backends.onnx import TransposedPropagate
from vitrail.layers import Mlp
from vitrail.layers.rebuild import rebuild
from vitrail.models.emsnet import ConvAttention, GlobalAttention, Propagate, Whiten
from vitrail.models.lvt import CSA, RASA
from vitrail.models.mat import BilinearPatchEmbed, MatAttention
from vitrail.models.pale import PaleAttention, SeparableConv
from vitrail.models.partialformer import FullAttention, PartialAttention
from vitrail.models.pslt import LadderAttention
from vitrail.models.pyramid import Pyramid

from . import emsnet, lvt, mat, pale, partialformer, pslt, tokens

#: reference forms by the class they replace
MODULES: dict[type[nn.Module], type[nn.Module]] = {
    Mlp: tokens.ReferenceMlp,
    LadderAttention: pslt.ReferenceLadder,
    CSA: lvt.ReferenceCSA,
    RASA: lvt.ReferenceRASA,
    PaleAttention: pale.ReferencePale,
    SeparableConv: pale.ReferenceSeparable,
    Propagate: TransposedPropagate,
    Whiten: emsnet.ReferenceWhiten,
    ConvAttention: emsnet.ReferenceConvAttention,
    GlobalAttention: emsnet.ReferenceGlobalAttention,
    MatAttention: mat.ReferenceMat,
    BilinearPatchEmbed: mat.ReferenceBilinear,
    PartialAttention: partialformer.ReferencePartial,
    FullAttention: partialformer.ReferenceFull,
}


class ReferencePyramid(Pyramid):
    """A backbone that leaves its input in the memory format it comes in."""

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm(self.stages(self.stem(x)))


def reference_form(network: Pyramid) -> Pyramid:
    """A copy of one of our networks in reference form, with the same state dict."""
    kind = type(network)
    reference = type(f"Reference{kind.__name__}", (ReferencePyramid, kind), {})
    # without the hook that reads other layouts of weights: it is bound to the network
    twin = rebuild(copy.deepcopy(network), reference, _load_state_dict_pre_hooks=OrderedDict())
    for name, module in list(twin.named_modules()):
        if type(module) in MODULES:
            twin.set_submodule(name, rebuild(module, MODULES[type(module)]))
    return twin
