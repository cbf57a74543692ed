"""Candidates as plain values, and mixers of a user's own."""

import json
import sys

import pytest
from torch import nn

from vitrail.errors import UserError
from vitrail.lab import MIXERS, Candidate, candidates, import_mixer, register_mixer
from vitrail.lab.candidates import all_mixers

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
    register_mixer("own", nn.Identity)
    assert "own" not in all_mixers()
    assert {"ladder", "csa", "rasa", "pale_parallel", "ems_static", "mat", "partial", "window"} < set(all_mixers())
    assert all(MIXERS[name].description for name in all_mixers())


# ---- mixers of a user's own ----------------------------------------------------------------------------------------


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
