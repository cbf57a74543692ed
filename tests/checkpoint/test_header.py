"""Headers of .safetensors files: read and compared with the network before tensors take memory."""

import json
import re
import resource
import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import vitrail
from fuzz_weights import descriptions, entries, raw_files, write_raw
from head_helpers import SMALL, small_head, task_of
from vitrail.checkpoint.description import COUNTS, WeightsMeta
from vitrail.checkpoint.format import save_weights
from vitrail.checkpoint.header import MAX_HEADER, bounded, read_header
from vitrail.checkpoint.initialize import init_from
from vitrail.checkpoint.load import _outline, load_network
from vitrail.errors import UserError
from vitrail.factory import HEADS, assemble
from vitrail.utils.plain import to_dict

TINY = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "head_hidden_size": 24}
META = WeightsMeta("mat_1", TINY, classes=["a", "b", "c"])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return vitrail.create_model("mat_1", **TINY, num_classes=3).eval()


@pytest.fixture
def saved(tmp_path, network):
    path = tmp_path / "w.safetensors"
    save_weights(path, network.state_dict(), META)
    return path


def rewrite(path, change=None, text=None, **tensors):
    """The file with its description changed or replaced, and tensors replaced."""
    values = to_dict(META)
    if change is not None:
        change(values)
    save_file({**load_file(path), **tensors}, path, {"vitrail": json.dumps(values) if text is None else text})
    return path


# ---- the file itself --------------------------------------------------------------------------------------------


def test_names_and_shapes_are_those_of_the_tensors(saved, network):
    header = read_header(saved)
    assert header.shapes == {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert header.values == sum(value.numel() for value in network.state_dict().values())
    assert header.meta() == META


def test_other_trainers_files_have_no_description(tmp_path):
    save_file({"x": torch.zeros(2, 3)}, tmp_path / "w.safetensors", {"format": "pt"})
    header = read_header(tmp_path / "w.safetensors")
    assert (header.shapes, header.text, header.meta()) == ({"x": (2, 3)}, None, None)


def lies(path):
    """Files whose header says what is not so."""
    good, end = entries({"a": (2, 3), "b": (4,)})
    data = bytes(end)
    a, b = good["a"], good["b"]
    yield "empty", write_raw(path, b"")
    yield "no JSON", write_raw(path, b"{", data)
    yield "not UTF-8", write_raw(path, b'{"\xff": 1}', data)
    yield "no mapping", write_raw(path, [1], data)
    yield "nested", write_raw(path, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", data)
    yield "length beyond the file", write_raw(path, good, data, 10**6)
    yield "length of 16 EB", write_raw(path, good, data, 2**64 - 1)
    yield "length too short", write_raw(path, good, data, 20)
    yield "trailing bytes", write_raw(path, good, data + b"x")
    yield "too few bytes", write_raw(path, good, data[:-1])
    yield "shared offsets", write_raw(path, {"a": a, "b": {**b, "data_offsets": [0, 16]}}, data)
    yield "a gap", write_raw(path, {"a": a, "b": {**b, "data_offsets": [28, 44]}}, data + bytes(4))
    yield "reversed offsets", write_raw(path, {"a": {**a, "data_offsets": [24, 0]}, "b": b}, data)
    yield "a shape of other size", write_raw(path, {"a": {**a, "shape": [2, 4]}, "b": b}, data)
    yield "a shape beyond 64 bits", write_raw(path, {"a": {**a, "shape": [2**40, 2**40]}, "b": b}, data)
    yield "a negative shape", write_raw(path, {"a": {**a, "shape": [-2, -3]}, "b": b}, data)
    yield "an unknown kind", write_raw(path, {"a": {**a, "dtype": "F128\x1b[2J"}, "b": b}, data)
    yield "metadata that is no text", write_raw(path, {**good, "__metadata__": {"vitrail": 5}}, data)
    yield "metadata that is a list", write_raw(path, {**good, "__metadata__": [1]}, data)


def test_lies_are_refused_in_one_sentence(tmp_path):
    seen = 0
    for what, path in lies(tmp_path / "w.safetensors"):
        for read in (read_header, load_network, lambda p: init_from(torch.nn.Linear(3, 2), p)):
            with pytest.raises(UserError, match=r"w\.safetensors is damaged or no \.safetensors file") as error:
                read(path)
            assert str(error.value).isprintable(), what
            assert len(str(error.value)) < 1000, what
        seen += 1
    assert seen == 19


def test_a_header_beyond_its_bound_is_not_read(tmp_path):
    path = tmp_path / "w.safetensors"
    with open(path, "wb") as file:
        file.write((MAX_HEADER + 1).to_bytes(8, "little"))
        file.truncate(8 + MAX_HEADER + 1)  # as large as it says
    with pytest.raises(UserError, match=r"its header has 16,777,217 bytes"):
        read_header(path)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.uint16])
def test_kinds_that_no_network_has(saved, kind):
    rewrite(saved, **{"head.fc.bias": torch.zeros(3).to(kind)})
    with pytest.raises(UserError, match=r"holds 'head\.fc\.bias' as \w+, which no network here has"):
        load_network(saved)


# ---- what fits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted(saved, network, kind):
    state = {name: v.to(kind) if v.is_floating_point() else v for name, v in network.state_dict().items()}
    rewrite(saved, **state)
    found = load_network(saved).state_dict()
    for name, value in network.state_dict().items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value.to(kind).to(value.dtype) if value.is_floating_point() else value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["load", "init"])
def test_one_value_that_is_not_finite_is_found(saved, network, value, where):
    name = "head.fc.weight"
    weight = network.state_dict()[name].clone()
    weight.flatten()[-1] = value
    rewrite(saved, **{name: weight})
    with pytest.raises(UserError, match=rf"holds values in {re.escape(name)} that are not finite"):
        load_network(saved) if where == "load" else init_from(network, saved)


def test_a_number_beyond_the_networks_precision_is_not_finite(saved, network):
    rewrite(saved, **{"head.fc.bias": torch.full((3,), 1e300, dtype=torch.float64)})
    with pytest.raises(UserError, match=r"holds values in head\.fc\.bias that are not finite"):
        load_network(saved)


@pytest.mark.parametrize("kind", [torch.int64, torch.int8, torch.bool, torch.uint8])
def test_integers_are_no_fractions(saved, kind):
    rewrite(saved, **{"head.fc.bias": torch.ones(3).to(kind)})
    with pytest.raises(UserError, match=r"holds head\.fc\.bias as \w+, where the network has float32"):
        load_network(saved)


def test_fractions_are_no_counts(saved, network):
    counts = next(name for name in network.state_dict() if name.endswith("num_batches_tracked"))
    rewrite(saved, **{counts: torch.tensor(1.5)})
    with pytest.raises(UserError, match=f"holds {re.escape(counts)} as float32, where the network has int64"):
        load_network(saved)


@pytest.mark.parametrize("classes", [["a", "b"], ["a", "b", "c", "d"]])
def test_too_few_or_too_many_class_names(saved, classes):
    rewrite(saved, lambda values: values.update(classes=classes))
    with pytest.raises(UserError, match=rf"names {len(classes)} classes, but its classifier [\w.]+weight scores 3"):
        load_network(saved)


# ---- what asks for more than the file holds ---------------------------------------------------------------------

GREEDY = [
    ({"model": "vit_giant_patch14_224", "model_options": {}}, "far larger than its"),
    ({"model": "mat_5", "model_options": {}}, "holds weights of other options|far larger"),
    ({"model_options": {**TINY, "depths": [8000, 8000, 8000, 8000]}}, "far larger than its"),
    ({"model_options": {**TINY, "depths": [100_000, 1, 1, 1]}}, r"model_options\.'depths'=100000, which does not fit"),
    ({"model_options": {**TINY, "embed_dims": [8000, 8000, 8000, 8000]}}, "far larger than its|other options"),
    ({"model_options": {**TINY, "embed_dims": [10**9, 8, 8, 8]}}, r"model_options\.'embed_dims'=1000000000"),
    ({"model_options": {**TINY, "mlp_ratio": 1e9}}, "far larger|no option|cannot be built"),
    ({"model_options": {**TINY, "drop_rate": float("nan")}}, r"model_options\.'drop_rate'=nan"),
    (
        {"model": "swin_tiny_patch4_window7_224", "model_options": {"img_size": 8192}},
        "far larger than its|other options",
    ),
    ({"model": "vit_tiny_patch16_224", "model_options": {"img_size": 10**7}}, "model_options.'img_size'=10000000"),
    ({"model": "pslt_tiny", "model_options": {"window_size": 8000}}, "far larger than its"),
]


@pytest.mark.parametrize(("values", "sentence"), GREEDY, ids=[str(values)[:60] for values, _ in GREEDY])
def test_networks_larger_than_the_file_are_refused_in_seconds(saved, values, sentence):
    rewrite(saved, lambda own: own.update(values))
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(UserError, match=sentence):
        load_network(saved)
    assert time.monotonic() - started < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn", "sparse_rcnn", "semantic_fpn"])
def test_heads_larger_than_the_file_are_refused(saved, head):
    names = ["a"] * 3
    task = "semantic_segmentation" if head == "semantic_fpn" else "detection"
    options = {"num_classes": 3, "channels": 8000}
    rewrite(saved, lambda own: own.update(head=head, task=task, classes=names, head_options=options))
    with pytest.raises(UserError, match=r"far larger than its|holds weights of other options"):
        load_network(saved)


def test_building_is_unbounded_again_afterwards(saved):
    header = read_header(saved)
    with pytest.raises(UserError, match="far larger"), bounded(header):
        torch.nn.Linear(100_000, 100_000, device="meta")
    torch.nn.Linear(100_000, 100_000, device="meta")


# ---- names that fetch, load or import ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["hf-hub:timm/resnet18.a1_in1k", "hf_hub:a/b", "local-dir:/tmp", "os:system", "/etc/passwd", "../mat_1", ""]
)
def test_a_name_is_one_of_a_registered_network_or_refused(saved, name):
    rewrite(saved, lambda own: own.update(model=name))
    with pytest.raises(UserError, match="Unknown model"):
        load_network(saved)


def test_a_wrong_tag_is_named_with_the_existing_ones(saved):
    rewrite(saved, lambda own: own.update(model="resnet18.nonsense"))
    with pytest.raises(UserError, match=r"Model resnet18 has no weights 'nonsense': its weights are .*a1_in1k"):
        load_network(saved)
    rewrite(saved, lambda own: own.update(model="mat_1.x"))
    with pytest.raises(UserError, match=r"Model mat_1 has no weights 'x': it has no tags"):
        load_network(saved)


@pytest.mark.parametrize(
    "origin",
    [
        {"pretrained": True},
        {"checkpoint_path": "/nowhere/w.pth"},
        {"pretrained_cfg": {"url": "https://example.invalid/w.pth", "hf_hub_id": "a/b"}, "pretrained": True},
        {"pretrained_cfg_overlay": {"file": "/etc/passwd"}, "pretrained": True, "cache_dir": "/nowhere"},
        {"pretrained_model_args": {"x": 1}},
    ],
    ids=str,
)
def test_weights_come_from_the_file_alone(saved, network, origin, monkeypatch):
    def fetched(*_, **__):
        raise AssertionError("asked for other weights")

    for place in ("_factory.load_checkpoint", "_builder.load_pretrained"):
        monkeypatch.setattr(f"timm.models.{place}", fetched)
    rewrite(saved, lambda own: own["model_options"].update(origin))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(load_network(saved)(x), network(x))


# ---- anything ---------------------------------------------------------------------------------------------------

anything = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SHAPES = {"weight": (3, 2), "bias": (3,), "running": ()}


def outcome(path):
    try:
        load_network(path)
    except UserError as error:
        return str(error)
    return ""


@anything
@given(raw_files(SHAPES, json.dumps(to_dict(META))))
def test_any_header_gives_a_network_or_one_sentence(tmp_path, raw):
    header, data, length = raw
    sentence = outcome(write_raw(tmp_path / "raw.safetensors", header, data, length))
    assert sentence
    assert sentence.isprintable()
    assert len(sentence) < 1500


@anything
@given(st.data())
def test_any_description_gives_a_network_or_one_sentence(saved, data):
    values = data.draw(descriptions(to_dict(META)))
    rewrite(saved, text=json.dumps(values))
    sentence = outcome(saved)
    assert sentence.isprintable()
    assert len(sentence) < 1500


# ---- networks under heads ---------------------------------------------------------------------------------------


def test_every_head_is_tried():
    assert SMALL.keys() == HEADS.keys()


@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_a_network_under_a_head_comes_back(tmp_path, head):
    options = small_head(head)
    torch.manual_seed(0)
    model = assemble("mat_1", head, TINY, options).eval()
    classes = [f"class {i}" for i in range(sum(options.get(name, 0) for name in COUNTS))]
    meta = WeightsMeta("mat_1", TINY, head, options, task_of(head), classes)
    path = tmp_path / "w.safetensors"
    save_weights(path, model.state_dict(), meta)
    assert _outline(meta, path) is not None
    again = load_network(path)
    theirs = dict(again.named_buffers())
    assert all(torch.equal(value, theirs[name]) for name, value in model.named_buffers())
    image = torch.rand(3, 70, 64)
    inputs = [image] if HEADS[head].detector else image[None]
    found, wanted = (torch.utils._pytree.tree_leaves(network(inputs)) for network in (again, model))
    assert len(found) == len(wanted) > 0
    for ours, expected in zip(found, wanted, strict=True):
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(expected))


@pytest.mark.parametrize(
    ("head", "option", "value"),
    [
        ("retinanet", "score_thresh", "high"),
        ("retinanet", "detections_per_img", 2.5),
        ("retinanet", "topk_candidates", None),
        ("mask_rcnn", "rpn_pre_nms_top_n_test", 1.5),
        ("mask_rcnn", "box_nms_thresh", [0.5]),
        ("ssdlite", "nms_thresh", {}),
        ("sparse_rcnn", "num_proposals", "300"),
        ("upernet", "dropout", "0.1"),
    ],
)
def test_a_heads_options_are_of_the_kinds_of_its_defaults(saved, head, option, value):
    changes = {"head": head, "task": task_of(head), "head_options": {**small_head(head), option: value}}
    rewrite(saved, lambda own: own.update(changes))
    with pytest.raises(UserError, match=f"head_options.{option} must be"):
        load_network(saved)
