"""Candidates as plain values, and mixers of a user's own."""

import json
import sys

import pytest
import timm
import torch
from torch import nn

from vitrail.errors import UserError
from vitrail.lab import MIXERS, Candidate, candidates, import_mixer, register_mixer
from vitrail.lab.candidates import all_mixers


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


@pytest.fixture(autouse=True)
def _own_mixers_are_forgotten():
    known = dict(MIXERS)
    yield
    MIXERS.clear()
    MIXERS.update(known)


# ---- plain values ---------------------------------------------------------------------------------------------------


def test_round_trip():
    made = Candidate("a", "lab_plain", {"embed_dims": (8, 16, 24, 32), "mixer": "mat", "cpe": False})
    again = Candidate.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again == made
    assert made.model_options["embed_dims"] == [8, 16, 24, 32]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"name": "a"}, "entries name, model, model_options"),
        ({"name": "a", "model": 3, "model_options": {}}, "model=3"),
        ([], "entries"),
    ],
)
def test_other_values_are_refused(values, sentence):
    with pytest.raises(UserError, match=sentence):
        Candidate.from_dict(values)


def test_options_that_are_no_plain_values_are_refused():
    with pytest.raises(UserError, match="no plain values"):
        Candidate("a", "lab_plain", {"mixer": nn.Identity()})
    with pytest.raises(UserError, match="no plain values"):
        Candidate("a", "lab_plain", {"mlp_ratio": float("nan")})


def test_an_option_goes_to_the_mixers_that_have_it():
    made = candidates(["window", "global", "mat"], {"stem_stride": 2}, {"window_size": 4})
    assert [one.model_options for one in made] == [
        {"stem_stride": 2, "mixer": "window", "mixer_options": {"window_size": 4}},
        {"stem_stride": 2, "mixer": "global"},
        {"stem_stride": 2, "mixer": "mat", "mixer_options": {"window_size": 4}},
    ]
    assert {one.build(3).num_classes for one in made} == {3}


@pytest.mark.parametrize(
    ("mixers", "options", "sentence"),
    [
        (["windos"], {}, "did you mean window"),
        (["zzzz"], {}, "there are identity"),
        (["global", "identity"], {"window_size": 4}, "they have none"),
        (["global", "mat"], {"size": 4}, "they have window_size"),
        (["mat", "global", "mat"], {}, "mat is named twice"),
    ],
)
def test_wrong_candidates_are_refused(mixers, options, sentence):
    with pytest.raises(UserError, match=sentence):
        candidates(mixers, mixer_options=options)


def test_all_mixers_are_the_librarys_own():
    register_mixer("average", Average)
    assert "average" not in all_mixers()
    assert {"ladder", "csa", "rasa", "pale_parallel", "ems_static", "mat", "partial", "window"} < set(all_mixers())
    assert all(MIXERS[name].description for name in all_mixers())


# ---- a user's own ---------------------------------------------------------------------------------------------------


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


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A folder with a user's module, which is the current one."""
    text = "import torch\n\n\nclass Own(torch.nn.Identity):\n    pass\n\n\nclass Other:\n    Own = Own\n"
    (tmp_path / "own_mixers_of_a_test.py").write_text(text)
    (tmp_path / "broken_mixers_of_a_test.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    yield "own_mixers_of_a_test"
    sys.modules.pop("own_mixers_of_a_test", None)


def test_a_class_is_imported_from_the_current_folder(own_module):
    path = list(sys.path)
    kind = import_mixer(f"{own_module}:Own")
    assert sys.path == path
    assert kind.name == f"{own_module}:Own"
    assert import_mixer(kind.name) is kind
    [made] = candidates([kind.name])
    assert type(made.build(2).stages[0].blocks[0].mixer).__name__ == "Own"
    assert import_mixer(f"{own_module}:Other.Own").made_of is kind.made_of


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("own_mixers_of_a_test:Owned", "has no Owned"),
        ("own_mixers_of_a_test:Other", "no class of torch.nn.Module"),
        ("broken_mixers_of_a_test:Own", "ZeroDivisionError"),
        ("no_such_module_of_a_test:Own", "cannot be imported: ModuleNotFoundError"),
        ("own mixers:Own", "module:Class"),
        ("../own:Own", "module:Class"),
    ],
)
def test_what_cannot_be_imported_is_refused(own_module, spec, sentence):
    with pytest.raises(UserError, match=sentence):
        import_mixer(spec)


def test_nothing_is_imported_because_options_name_it(own_module):
    """A stored description may name any module: the network is refused, the module not imported."""
    stored = Candidate.from_dict({"name": "x", "model": "lab_plain", "model_options": {"mixer": f"{own_module}:Own"}})
    with pytest.raises(UserError, match="register_mixer"):
        stored.build(2)
    assert own_module not in sys.modules
    import_mixer(f"{own_module}:Own")
    stored.build(2)
