"""Networks that were built without memory are whole once they have their weights, whoever gives them."""

from importlib.util import find_spec

import pytest
import timm
import torch

import vitrail
from network_helpers import SMALLEST, randomised, small
from vitrail.models import FAMILIES

every_family = pytest.mark.parametrize("family", FAMILIES)


def on_meta(family):
    with torch.device("meta"):
        return small(family).eval()


def spoil(buffer):
    """What fresh memory may hold."""
    return torch.full_like(buffer, 2**40 if not buffer.is_floating_point() else float("nan"), device="cpu")


def computed(model):
    """The module and name of every buffer that files do not hold."""
    return [(module, name) for module in model.modules() for name in sorted(module._non_persistent_buffers_set)]


def to_empty(model, state):
    model.to_empty(device="cpu")
    for module, name in computed(model):
        setattr(module, name, spoil(getattr(module, name)))
    model.load_state_dict(state)


def assigned(model, state):
    model.load_state_dict(state, assign=True)


def as_transformers(model, state):
    """`from_pretrained`: parameters set one by one, other buffers in fresh memory, then each module is asked."""
    for name, value in state.items():
        place, _, last = name.rpartition(".")
        module = model.get_submodule(place)
        setattr(module, last, torch.nn.Parameter(value) if last in module._parameters else value)
    for module, name in computed(model):
        setattr(module, name, spoil(getattr(module, name)))
    for module in model.modules():
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()


def initialised(model, state):
    """Fresh weights on empty memory, then those of the file."""
    model.to_empty(device="cpu")
    for module, name in computed(model):
        setattr(module, name, spoil(getattr(module, name)))
    model.init_weights()
    with torch.no_grad():
        for name, value in model.state_dict(keep_vars=True).items():
            value.copy_(state[name])


@every_family
@pytest.mark.parametrize("load", [to_empty, assigned, as_transformers, initialised])
def test_a_network_from_the_meta_device_is_the_network(family, load):
    model = randomised(small(family)).eval()
    other = on_meta(family)
    assert all(value.is_meta for value in [*other.parameters(), *other.buffers()])
    load(other, {name: value.clone() for name, value in model.state_dict().items()})
    theirs = dict(other.named_buffers())
    assert all(torch.equal(value, theirs[name]) for name, value in model.named_buffers())
    x = torch.randn(2, 3, 65, 70)
    with torch.no_grad():
        torch.testing.assert_close(other(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", vitrail.list_models())
def test_every_computed_buffer_can_be_computed_again(name):
    for options in ({}, {"features_only": True}):
        for module, buffer in computed(timm.create_model(name, device="meta", **options)):
            assert hasattr(module, "init_non_persistent_buffers"), f"{type(module).__name__}.{buffer}"


@pytest.mark.skipif(find_spec("transformers") is None, reason="Transformers is not installed")
@every_family
def test_transformers_gives_back_what_it_saved(family, tmp_path):
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    options = {"depths": (1, 1, 2, 2)}
    config = TimmWrapperConfig(architecture=SMALLEST[family], num_labels=10, model_args=options)
    model = TimmWrapperForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    again = TimmWrapperForImageClassification.from_pretrained(tmp_path).eval()
    x = torch.randn(1, 3, 65, 70)
    with torch.no_grad():
        torch.testing.assert_close(again(pixel_values=x).logits, model(pixel_values=x).logits, rtol=1e-5, atol=1e-6)
