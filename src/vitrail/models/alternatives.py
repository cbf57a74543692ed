"""timm's strongest small networks that have trained weights, by cost: what to start from while ours have none."""

from __future__ import annotations

from dataclasses import dataclass

#: most multiply-adds and parameters of an alternative, relative to the network that it stands in for
MOST_GMACS, MOST_PARAMS = 1.1, 1.6


@dataclass(frozen=True)
class Alternative:
    """A network of timm with ImageNet-1k weights, whose licence allows any use.

    Attributes:
        name: timm's, with the tag of the weights; "dist" in it = trained with a teacher.
        top1: ImageNet-1k accuracy at 224x224 in timm's table of results, in %.
        params: learnable parameters.
        gmacs: multiply-adds at 224x224 in 10^9, counted as those of our catalog.
    """

    name: str
    top1: float
    params: int
    gmacs: float


#: counted by a test
ALTERNATIVES = (
    Alternative("levit_128s.fb_dist_in1k", 76.5, params=7_777_058, gmacs=0.3047),
    Alternative("efficientformerv2_s0.snap_dist_in1k", 76.1, params=3_600_256, gmacs=0.3959),
    Alternative("levit_128.fb_dist_in1k", 78.5, params=9_213_936, gmacs=0.4053),
    Alternative("efficientformerv2_s1.snap_dist_in1k", 79.7, params=6_185_560, gmacs=0.652),
    Alternative("levit_192.fb_dist_in1k", 79.8, params=10_947_069, gmacs=0.657),
    Alternative("rexnet_150.nav_in1k", 80.3, params=9_728_593, gmacs=0.8758),
    Alternative("efficientformer_l1.snap_dist_in1k", 80.5, params=12_289_928, gmacs=1.2913),
    Alternative("efficientvit_b2.r224_in1k", 82.1, params=24_330_712, gmacs=1.5849),
    Alternative("efficientvit_b3.r224_in1k", 83.5, params=48_646_056, gmacs=3.9538),
    Alternative("caformer_s18.sail_in1k", 83.6, params=26_341_656, gmacs=4.1069),
)


def alternative_to(params: int, gmacs: float) -> Alternative | None:
    """The strongest of `ALTERNATIVES` of about this cost (`MOST_GMACS`, `MOST_PARAMS`); None if there is none."""
    fitting = [one for one in ALTERNATIVES if one.gmacs <= MOST_GMACS * gmacs and one.params <= MOST_PARAMS * params]
    return max(fitting, key=lambda one: one.top1, default=None)
