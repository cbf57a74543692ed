"""The laboratory of token mixers: any mixer in one plain network, at one budget, trained alike and compared.

`lab_plain` (`models/lab_plain.py`) is the network, `models/mixers.py` has the mixers; `run_lab` trains and compares.
"""

from ..models.mixers import MIXERS, MixerKind, register_mixer
from .ablations import ablations
from .budget import Equal, Scaled, cost, latencies, scaled
from .candidates import Candidate, candidates
from .laboratory import run_lab
from .options import LabConfig
from .own import import_mixer

__all__ = [
    "MIXERS",
    "Candidate",
    "Equal",
    "LabConfig",
    "MixerKind",
    "Scaled",
    "ablations",
    "candidates",
    "cost",
    "import_mixer",
    "latencies",
    "register_mixer",
    "run_lab",
    "scaled",
]
