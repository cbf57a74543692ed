"""The laboratory of token mixers: any mixer in one plain network, at one budget.

`lab_plain` (`models/lab_plain.py`) is the network, `models/mixers.py` has the mixers.
"""

from ..models.mixers import MIXERS, MixerKind, register_mixer
from .ablations import ablations
from .budget import Equal, Scaled, cost, latencies, scaled
from .candidates import Candidate, candidates
from .own import import_mixer

__all__ = [
    "MIXERS",
    "Candidate",
    "Equal",
    "MixerKind",
    "Scaled",
    "ablations",
    "candidates",
    "cost",
    "import_mixer",
    "latencies",
    "register_mixer",
    "scaled",
]
