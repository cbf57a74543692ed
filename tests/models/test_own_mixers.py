"""A user's own class as a mixer: built, checked, named once."""

import pytest
import timm
import torch
from torch import nn

from vitrail.errors import UserError
from vitrail.models.mixers import MIXERS, register_mixer


class Average(nn.Module):
    """The mean over the map."""

    def __init__(self, dim):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim, 1, 1))

    def forward(self, x):
        return self.scale * x.mean((2, 3), keepdim=True).expand_as(x)


class Heads(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 1, groups=num_heads)
        nn.init.constant_(self.proj.weight, 0.125)

    def forward(self, x):
        return self.proj(x)


class Optional(Average):
    def __init__(self, dim, kernel_size=3):
        super().__init__(dim)
        assert kernel_size == 3


class Halved(Average):
    def forward(self, x):
        return x[:, :, ::2]


class Listed(Average):
    def forward(self, x):
        return [x]


class Square(Average):
    def forward(self, x):
        return x.transpose(2, 3) + x


class Three(Average):
    def __init__(self, dim, a, b):
        super().__init__(dim)


def test_a_class_joins_the_mixers():
    kind = register_mixer("average", Average)
    assert kind.description == "The mean over the map"
    assert register_mixer("average", Average) == kind
    network = timm.create_model("lab_plain", mixer="average", stem_stride=2, num_classes=2)
    assert type(network.stages[3].blocks[1].mixer) is Average
    assert network(torch.randn(1, 3, 17, 9)).shape == (1, 2)


def test_its_own_initialisation_stays():
    register_mixer("heads", Heads)
    network = timm.create_model("lab_plain", mixer="heads")
    proj = network.stages[2].blocks[0].mixer.proj
    assert proj.groups == 4
    assert (proj.weight == 0.125).all()


def test_a_second_argument_with_a_default_is_no_number_of_heads():
    register_mixer("optional", Optional)
    timm.create_model("lab_plain", mixer="optional")


@pytest.mark.parametrize(
    ("made_of", "sentence"),
    [
        (dict, "no class of torch.nn.Module"),
        (Average(3), "no class of torch.nn.Module"),
        (Halved, "keep the shape"),
        (Listed, "to list"),
        (Square, "maps of any size"),
        (Three, r"\(dim\) or \(dim, num_heads\)"),
    ],
)
def test_what_is_no_mixer_is_refused(made_of, sentence):
    with pytest.raises(UserError, match=sentence):
        register_mixer("own", made_of)
    assert "own" not in MIXERS


def test_a_name_is_given_once():
    with pytest.raises(UserError, match="'mat' already"):
        register_mixer("mat", Average)
    register_mixer("average", Average)
    with pytest.raises(UserError, match="'average' already"):
        register_mixer("average", Heads)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("os:system", "is not registered in this process"), ("zzzzz", "choose one of"), ("a" * 99 + ":B", "aaa...'")],
)
def test_a_name_that_is_not_registered_is_refused(name, sentence):
    with pytest.raises(ValueError, match=r".") as caught:
        timm.create_model("lab_plain", mixer=name)
    assert sentence in str(caught.value)
