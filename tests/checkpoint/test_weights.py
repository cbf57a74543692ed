import argparse
import errno
import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv

import vitrail
from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import read_meta, save_weights
from vitrail.checkpoint.initialize import init_from, init_same
from vitrail.checkpoint.load import load_network, open_network
from vitrail.config.data import Preprocess
from vitrail.errors import UserError
from vitrail.factory import assemble, build_model
from vitrail.utils.files import write_whole

TINY = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
CLASSES = ["ant", "bee", "cat", "Dürer's hare"]


def net(classes=4, seed=0, **options):
    torch.manual_seed(seed)
    return vitrail.create_model("mat_1", **{**TINY, **options}, num_classes=classes).eval()


def meta(**changes):
    preprocess = Preprocess((32, 48), (0.5,) * 3, (0.25,) * 3, "bilinear", 0.95, 3)
    values = {"model": "mat_1", "model_options": TINY, "classes": CLASSES, "preprocess": preprocess}
    return WeightsMeta(**{**values, "licence": "CC-BY-4.0", "metrics": {"top1": 200 / 3}, **changes})


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "best.safetensors"
    model = net()
    save_weights(path, model.state_dict(), meta())
    return path, model


def same(a, b, but=()):
    b = b.state_dict()
    names = [name for name in a.state_dict() if not name.startswith(tuple(but))]
    return all(torch.equal(a.state_dict()[name], b[name]) for name in names)


# ---- writing and reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_run", [False, True])
def test_network_returns_with_its_description(saved, as_run):
    path, model = saved
    again = load_network(path.parent if as_run else path)
    assert not again.training
    assert again.meta == meta() == read_meta(path)
    x = torch.randn(2, 3, 32, 48)
    assert torch.equal(again(x), model(x))


def test_file_is_plain_safetensors(saved):
    path, model = saved
    assert set(load_file(path)) == set(model.state_dict())


def test_same_content_same_bytes(saved, tmp_path):
    path, model = saved
    for _ in range(8):  # the library's own writer orders the metadata at random
        save_weights(tmp_path / "again.safetensors", model.state_dict(), meta())
        assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_fields_of_a_later_version_are_skipped(tmp_path):
    path = tmp_path / "w.safetensors"
    text = json.dumps({"model": "mat_1", "classes": ["a"], "from_the_future": 1})
    save_file({"x": torch.zeros(1)}, path, {"vitrail": text})
    assert read_meta(path).classes == ["a"]


def test_full_disk_leaves_the_old_file(saved, monkeypatch):
    path, _ = saved
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("vitrail.utils.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(path, net(seed=1).state_dict(), meta())
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_write_whole_replaces(tmp_path):
    write_whole(tmp_path / "a", "old")
    write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 4, 100, -10])
def test_truncated_safetensors(saved, size):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:size])
    for read in (load_network, read_meta, lambda p: init_from(net(), p)):
        with pytest.raises(UserError, match=r"best.safetensors is damaged"):
            read(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_truncated_pickle(tmp_path, legacy, share):
    path = tmp_path / "w.pth"
    torch.save(net().state_dict(), path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"w.pth is damaged or no weights file"):
        init_from(net(), path)


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_code_in_a_pickle_is_refused_and_never_runs(tmp_path, form):
    path, marker = tmp_path / "w.pth.tar", tmp_path / "ran"
    content = {"state_dict": net().state_dict(), "extra": Evil(str(marker))}
    if form == "bare":
        path.write_bytes(pickle.dumps(Evil(str(marker))))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match=r"w.pth.tar is (refused: .* holds Python code|damaged)") as found:
        init_from(net(), path)
    assert form == "bare" or "mkdir" in str(found.value)
    assert not marker.exists()


def test_missing_and_unsuitable_files(tmp_path):
    with pytest.raises(UserError, match="There is no weights file"):
        load_network(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match=r"holds no best.safetensors"):
        load_network(tmp_path)
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds no weights: expected tensors by name"):
        init_from(net(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"is no .safetensors of vitrail"):
        load_network(tmp_path / "w.pth")
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="has no description of its network"):
        load_network(tmp_path / "w.safetensors")


def test_weights_of_another_network(saved, tmp_path):
    path, _ = saved
    other = vitrail.create_model("test_vit", num_classes=4)
    with pytest.raises(UserError, match=r"weights of mat_1, not of test_vit: .*lacks .*and \d+ more.*has .*besides"):
        init_from(other, path, "test_vit")
    wider = net(embed_dims=[8, 8, 16, 32])
    with pytest.raises(UserError, match=r"weights of other options: stages\.3\S+ is .*16.* instead of .*32"):
        init_from(wider, path, "mat_1")
    save_weights(tmp_path / "lie.safetensors", other.state_dict(), meta())
    with pytest.raises(UserError, match=r"lie.safetensors holds weights of other options"):
        load_network(tmp_path / "lie.safetensors")


def test_unknown_networks_and_options():
    with pytest.raises(UserError, match=r"Unknown model 'mat_l': did you mean mat_"):
        build_model("mat_l", {}, 10)
    with pytest.raises(UserError, match="Model mat_1 has no option 'embed_dim'"):
        build_model("mat_1", {"embed_dim": 3}, 10)
    with pytest.raises(UserError, match="Model mat_1 cannot be built with"):
        build_model("mat_1", {"global_pool": "median"}, 10)
    with pytest.raises(UserError, match=r'Model mat_1 cannot be built with \{"drop_rate": "x"\}'):
        build_model("mat_1", {"drop_rate": "x"}, 10)


@pytest.mark.parametrize("depths", [[1, 1, 1, None], [1, {}, 1, 1], "ab12", 1.5, [1, True, 1, 1], [-1, 1, 1, 1]])
@pytest.mark.parametrize("name", ["mat_1", "emsnet_xxtiny", "lvt", "pale_tiny", "partialformer_b0", "volo_d0", "pslt"])
def test_a_number_of_blocks_that_is_none_is_named(name, depths):
    with pytest.raises(UserError, match=rf"Model {name} cannot be built .*depths=.* is not allowed; a stage has a"):
        build_model(name, {"depths": depths}, 10)


# ---- fine-tuning ------------------------------------------------------------------------------------------------


def test_same_classes_take_over_everything(saved):
    path, model = saved
    fresh = net(seed=1)
    report = init_from(fresh, path, "mat_1", CLASSES)
    assert same(fresh, model)
    assert (report.reinitialised, report.licence) == ([], "CC-BY-4.0")
    assert set(report.loaded) == set(model.state_dict())
    assert "licence of the source weights: CC-BY-4.0" in report.summary()


@pytest.mark.parametrize("classes", [3, 7])
def test_another_class_count_restarts_the_classifier_only(saved, classes):
    path, model = saved
    fresh = net(classes, seed=1)
    head = model.pretrained_cfg["classifier"]
    report = init_from(fresh, path, "mat_1", [str(i) for i in range(classes)])
    assert report.reinitialised == [f"{head}.weight", f"{head}.bias"]
    assert same(fresh, model, but=[head])
    assert torch.equal(fresh(torch.randn(2, 3, 32, 32)), torch.zeros(2, classes))  # all classes equally likely
    assert "initialised anew because" in report.summary()


def test_other_names_of_as_many_classes_restart_it_too(saved):
    path, _ = saved
    report = init_from(net(seed=1), path, "mat_1", ["p", "q", "r", "s"])
    assert len(report.reinitialised) == 2
    assert report.reason == "the classes of the weights are others"


@pytest.mark.parametrize("channels", [1, 4])
def test_first_convolution_is_adapted(saved, channels):
    path, model = saved
    fresh = net(seed=1, in_chans=channels)
    init_from(fresh, path, "mat_1", CLASSES)
    conv = model.pretrained_cfg["first_conv"] + ".weight"
    own = model.state_dict()[conv]
    assert torch.equal(fresh.state_dict()[conv], adapt_input_conv(channels, own))
    if channels == 1:
        torch.testing.assert_close(fresh.state_dict()[conv], own.sum(1, keepdim=True))
    assert same(fresh, model, but=[conv])


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "state_dict_ema"])
def test_authors_files(tmp_path, wrapper):
    """With the usual wrappers and company: options, a best accuracy, the prefix of DataParallel."""
    model = net()
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    content = state
    if wrapper:
        decoy = {name: tensor + 1 for name, tensor in state.items()} if wrapper == "state_dict_ema" else {}
        content = {wrapper: state, "args": argparse.Namespace(lr=0.1), "best": np.float64(70.5), "epoch": 3}
        content |= {"state_dict": decoy} if decoy else {}
    torch.save(content, tmp_path / "w.pth")
    fresh = net(seed=1)
    report = init_from(fresh, tmp_path / "w.pth", "mat_1")
    assert same(fresh, model)
    assert report.licence is None


def test_authors_file_goes_through_the_filter_of_its_family(tmp_path, monkeypatch):
    import sys

    model = net()
    torch.save({f"old.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "w.pth")

    def convert(state, _):
        return {name.removeprefix("old."): tensor for name, tensor in state.items()}

    monkeypatch.setattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", convert)
    fresh = net(seed=1)
    init_from(fresh, tmp_path / "w.pth")
    assert same(fresh, model)


# ---- files of other trainers ------------------------------------------------------------------------------------

WRAPPED = ["", "module.", "_orig_mod.", "module._orig_mod.", "model.", "net.backbone."]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", WRAPPED)
@pytest.mark.parametrize("name", ["mat_1", "resnet18", "test_vit"])
def test_files_of_wrapped_networks_of_ours_and_of_timm(tmp_path, name, prefix, suffix):
    options = {**TINY} if name == "mat_1" else {}
    source, target = (build_model(name, options, 10) for _ in range(2))
    state = {prefix + key: value for key, value in source.state_dict().items()}
    path = tmp_path / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    report = init_from(target, path, name)
    assert same(source, target)
    assert report.reinitialised == []


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_another_trainer_is_measured_with_the_network_named(tmp_path, suffix):
    source = build_model("test_vit", {}, 1000).eval()
    state = {f"_orig_mod.{key}": value for key, value in source.state_dict().items()}
    path = tmp_path / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    network = open_network(str(path), "test_vit")
    assert same(source, network)
    with pytest.raises(UserError, match="name it with --model"):
        open_network(str(path))


def test_a_file_without_imagenets_classes_is_not_measured_by_a_random_classifier(tmp_path):
    for classes in (10, 21843):
        torch.save(build_model("test_vit", {}, classes).state_dict(), tmp_path / "w.pth")
        with pytest.raises(UserError, match=r"has no classifier of the 1000 classes of ImageNet \(head\.weight"):
            open_network(str(tmp_path / "w.pth"), "test_vit")


def test_two_networks_in_one_file_are_ambiguous(tmp_path):
    states = {name: build_model("test_vit", {}, 10).state_dict() for name in ("first", "second")}
    torch.save(states, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth is ambiguous: several networks .*: 'first', 'second'"):
        init_from(build_model("test_vit", {}, 10), tmp_path / "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_authors_file_must_be_finite(tmp_path, value):
    model = net()
    state = {key: v.clone() for key, v in model.state_dict().items()}
    next(v for v in state.values() if v.ndim == 4)[0, 0, 0, 0] = value
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"holds values in \S+ that are not finite"):
        init_from(net(), tmp_path / "w.pth")


def test_tensors_without_numbers_of_their_own_are_refused(tmp_path):
    state = net().state_dict()
    name = next(key for key, value in state.items() if value.ndim == 4)
    shape = state[name].shape
    for odd in (
        torch.zeros(1).expand(shape),
        torch.zeros(shape).to_sparse(),
        torch.zeros(shape, device="meta"),
        torch.zeros(1).expand(10**12),
    ):
        torch.save({**state, name: odd}, tmp_path / "w.pth")
        with pytest.raises(UserError, match=r"w\.pth (holds '.*' as no plain numbers|is damaged)"):
            init_from(net(), tmp_path / "w.pth")


def test_a_packed_archive_is_refused_before_it_is_unpacked(tmp_path):
    import zipfile

    torch.save({"x": torch.zeros(1 << 22)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))
    assert (tmp_path / "w.pth").stat().st_size < 1 << 20
    with pytest.raises(UserError, match=r"w\.pth is refused: it is packed, and unpacks to 16,7\d\d,\d\d\d bytes"):
        init_from(net(), tmp_path / "w.pth")


def test_the_same_head_takes_other_classes_but_no_other_widths(tmp_path):
    def detector(classes, channels=16):
        head = {"num_classes": classes, "channels": channels, "min_size": 64, "max_size": 96}
        return assemble("mat_1", "retinanet", TINY, head), head

    source, options = detector(2)
    described = WeightsMeta("mat_1", TINY, "retinanet", options, "detection", ["a", "b"])
    path = tmp_path / "w.safetensors"
    save_weights(path, source.state_dict(), described)
    target, _ = detector(5)
    report = init_same(target, path, "mat_1")
    assert report.reinitialised
    assert all("cls" in name for name in report.reinitialised)
    wider, _ = detector(2, channels=32)
    with pytest.raises(UserError, match="holds weights of other options"):
        init_same(wider, path, "mat_1")


@pytest.mark.parametrize("option", ["features_only", "num_classes", "device", "dtype"])
def test_options_that_make_another_kind_of_network_are_refused(option):
    with pytest.raises(UserError, match=f"--model_options.{option} is no option"):
        build_model("mat_1", {option: True}, 10)
