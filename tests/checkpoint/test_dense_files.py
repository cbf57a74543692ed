"""Authors' files of LVT under SegFormer's head and Panoptic FPN, against these heads written anew from their layout."""

import fractions
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import batched_nms

from vitrail.checkpoint.dense_files import dense_file
from vitrail.checkpoint.load import open_network
from vitrail.config.data import DataConfig
from vitrail.config.train import TrainConfig
from vitrail.engine.evaluate import evaluate
from vitrail.errors import UserError
from vitrail.factory import assemble, build_model
from vitrail.tasks import task_of

WIDTHS, RATIOS, SR = (64, 64, 160, 256), (4, 8, 4, 4), (0, 4, 2, 1)
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


# ---- generated files with the released names and shapes ---------------------------------------------------------


def affine(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def encoder_shapes():
    """Names and shapes of the encoder in the authors' dense files."""
    found = {}
    for s, (width, before) in enumerate(zip(WIDTHS, (3, *WIDTHS), strict=False)):
        stage, kernel = f"backbone.backbone.{s}", 3 if s else 7
        found |= affine(f"{stage}.0.proj", width, before, kernel, kernel) | affine(f"{stage}.0.norm", width)
        for b in range(2):
            block, inner = f"{stage}.1.{b}", RATIOS[s] * width
            found |= affine(f"{block}.norm1", width) | affine(f"{block}.norm2", width)
            found |= affine(f"{block}.attn.proj", width, width)
            if s == 0:
                found |= affine(f"{block}.attn.attn", 162, width)
                found[f"{block}.attn.weight.weight"] = (9 * width, width, 1, 1)
                found |= affine(f"{block}.mlp.fc1", inner, width) | affine(f"{block}.mlp.fc2", width, inner)
                continue
            found[f"{block}.attn.q.weight"], found[f"{block}.attn.kv.weight"] = (width, width), (2 * width, width)
            found[f"{block}.attn.ds.weight"] = (width, 1, 3, 3)
            if SR[s] > 1:
                found |= affine(f"{block}.attn.sr", width, width, SR[s], SR[s]) | affine(f"{block}.attn.norm", width)
            found |= affine(f"{block}.mlp.fc1", inner, width, 1, 1) | affine(f"{block}.mlp.fc2", width, inner, 1, 1)
            found |= affine(f"{block}.mlp.depconv", inner, 1, 3, 3)
    return found


def segmenter_shapes(classes=150):
    found = encoder_shapes() | affine("decode_head.conv_seg", classes, 128, 1, 1)
    for i, width in enumerate(WIDTHS):
        found |= affine(f"decode_head.linear_c{i + 1}.proj", 256, width)
    found |= {"decode_head.linear_fuse.conv.weight": (256, 1024, 1, 1), **affine("decode_head.linear_fuse.bn", 256)}
    found |= {f"decode_head.linear_fuse.bn.{name}": (256,) for name in ("running_mean", "running_var")}
    found["decode_head.linear_fuse.bn.num_batches_tracked"] = ()
    return found | affine("decode_head.linear_pred", classes, 256, 1, 1)


def panoptic_shapes(things=80, stuff=53):
    found = encoder_shapes()
    for i, width in enumerate(WIDTHS):
        found |= affine(f"neck.lateral_convs.{i}.conv", 96, width, 1, 1)
        found |= affine(f"neck.fpn_convs.{i}.conv", 96, 96, 3, 3)
        found |= affine(f"roi_head.mask_head.convs.{i}.conv", 96, 96, 3, 3)
        for j in range((1, 1, 2, 3)[i]):
            layer = f"semantic_head.conv_upsample_layers.{i}.conv.{j}"
            found |= {f"{layer}.conv.weight": (48, 48 if j else 96, 3, 3), **affine(f"{layer}.gn", 48)}
    found |= affine("semantic_head.conv_logits", stuff + 1, 48, 1, 1)
    found |= affine("rpn_head.rpn_conv", 96, 96, 3, 3) | affine("rpn_head.rpn_cls", 3, 96, 1, 1)
    found |= affine("rpn_head.rpn_reg", 12, 96, 1, 1)
    found |= affine("roi_head.bbox_head.shared_fcs.0", 160, 96 * 49)
    found |= affine("roi_head.bbox_head.shared_fcs.1", 160, 160) | affine("roi_head.bbox_head.fc_cls", things + 1, 160)
    found |= affine("roi_head.bbox_head.fc_reg", 4 * things, 160)
    found |= affine("roi_head.mask_head.upsample", 96, 96, 2, 2)
    return found | affine("roi_head.mask_head.conv_logits", things, 96, 1, 1)


#: entries whose outputs must differ enough from place to place that results are no ties
LOUD = {"decode_head.linear_pred": 20, "roi_head.bbox_head.fc_cls": 10, "rpn_head.rpn_cls": 20, "rpn_head.rpn_reg": 0.5}


def filled(shapes):
    """Random tensors that keep the size of activations."""
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            made[name] = torch.tensor(7)
        elif len(shape) == 1:
            centre = 1.0 if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "n.weight", "var")) else 0.0
            made[name] = (centre + 0.1 * noise).abs() if centre else 0.1 * noise
        else:
            scale = next((value for mark, value in LOUD.items() if name.startswith(mark)), 1)
            made[name] = scale * noise / math.sqrt(math.prod(shape[1:]))
    return made


def save(entries, path, **more):
    """As MMSegmentation and MMDetection write it."""
    meta = {"mmcv_version": "1.3.0", "CLASSES": ("a", "b"), "PALETTE": [[0, 0, 0]], "iter": 160000}
    torch.save({"meta": meta, "state_dict": entries, "optimizer": {"state": {0: torch.zeros(3)}}, **more}, path)
    return path


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    entries = filled(segmenter_shapes())
    return entries, save(entries, tmp_path_factory.mktemp("authors") / "segformer.pth")


@pytest.fixture(scope="module")
def panoptic(tmp_path_factory):
    entries = filled(panoptic_shapes())
    return entries, save(entries, tmp_path_factory.mktemp("authors") / "panoptic.pth")


def encoder_maps(entries, images):
    """The four maps; that the family's filter reads its encoder is tested where the network is."""
    encoder = build_model("lvt", {}, 0).eval()
    encoder.load_state_dict({k.removeprefix("backbone."): v for k, v in entries.items() if k.startswith("backbone.")})
    with torch.no_grad():
        return encoder.forward_intermediates(images, intermediates_only=True)


# ---- SegFormer's head -------------------------------------------------------------------------------------------


def segformer_logits(entries, maps):
    """The head of MMSegmentation's layout: linear layers over positions, coarsest level first, batch norm, ReLU."""
    head = {name.removeprefix("decode_head."): value for name, value in entries.items()}
    levels = []
    for i in (4, 3, 2, 1):
        x = maps[i - 1]
        tokens = x.flatten(2).transpose(1, 2) @ head[f"linear_c{i}.proj.weight"].T + head[f"linear_c{i}.proj.bias"]
        x = tokens.transpose(1, 2).unflatten(2, x.shape[2:])
        levels.append(F.interpolate(x, maps[0].shape[2:], mode="bilinear", align_corners=False))
    x = F.conv2d(torch.cat(levels, 1), head["linear_fuse.conv.weight"])
    mean, var, weight, bias = (
        head[f"linear_fuse.bn.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
    )
    x = ((x - mean) / (var + 1e-5).sqrt() * weight + bias).relu()
    return F.conv2d(x, head["linear_pred.weight"], head["linear_pred.bias"])


def test_released_names_hold_the_printed_parameters():
    def parameters(shapes):
        return sum(math.prod(shape) for name, shape in shapes.items() if "running" not in name and "num_b" not in name)

    assert parameters(encoder_shapes()) == 3_429_092
    assert parameters(segmenter_shapes()) == 3_870_586 + 19_350  # with the layer that nothing uses
    assert parameters(panoptic_shapes()) == 5_349_770


@torch.no_grad()
def test_segmenter_gives_the_logits_of_the_authors_head(segmenter):
    entries, path = segmenter
    network = open_network(str(path), "lvt")
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    expected = segformer_logits(entries, encoder_maps(entries, images))
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)
    meta = network.meta
    assert (meta.head, meta.task, len(meta.classes), meta.classes[2]) == (
        "segformer",
        "semantic_segmentation",
        150,
        "sky",
    )
    assert meta.licence == "non-commercial research only"
    assert meta.preprocess.interpolation == "bilinear"


def test_segmenter_is_measured_as_the_authors_measure(segmenter, tmp_path):
    """Short side 512, long at most 2048, sides rounded up to multiples of 32; classes of the logits at full size."""
    entries, path = segmenter
    rng = np.random.default_rng(0)
    height, width = 512, 544
    coarse = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    x = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - MEAN[:, None, None]) / STD[:, None, None]
    logits = segformer_logits(entries, encoder_maps(entries, x[None]))
    found = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)[0].argmax(0).numpy()
    assert len(np.unique(found)) > 3
    truth = found.copy()
    truth[:100] = (truth[:100] + 1) % 150
    values = (truth + 1).astype(np.uint8)
    values[-50:] = 0  # ignored
    for split in ("validation", "training"):
        for kind, picture in (("images", image), ("annotations", Image.fromarray(values))):
            (tmp_path / kind / split).mkdir(parents=True)
            picture.save(tmp_path / kind / split / "a.png")
    metrics = evaluate(path, DataConfig("ade20k", root=str(tmp_path)), model="lvt", device="cpu")
    labelled, ious = values > 0, []
    for label in range(150):
        ours, theirs = (found == label) & labelled, (truth == label) & labelled
        if (ours | theirs).any():
            ious.append((ours & theirs).sum() / (ours | theirs).sum())
    assert metrics["mIoU"] == pytest.approx(np.mean(ious), abs=1e-3)


@pytest.mark.parametrize(
    ("size", "input_size"), [((400, 300), (512, 704)), ((300, 300), (512, 512)), ((3000, 300), (224, 2048))]
)
def test_segmenter_sees_the_sizes_of_the_authors_protocol(segmenter, size, input_size):
    task = task_of(open_network(str(segmenter[1]), "lvt").meta)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    ((views, own),) = task.inference.inputs([image], "cpu")
    assert (views[0].shape[1:], own) == (input_size, size[::-1])
    resized = np.array(image.resize(input_size[::-1], Image.Resampling.BILINEAR))
    expected = (torch.from_numpy(resized).permute(2, 0, 1) / 255 - MEAN[:, None, None]) / STD[:, None, None]
    torch.testing.assert_close(views[0], expected, rtol=0, atol=1e-5)


def test_a_fine_tuned_network_starts_with_encoder_and_head(segmenter, tmp_path):
    _, path = segmenter
    published = open_network(str(path), "lvt")
    config = TrainConfig(task="semantic_segmentation", model="lvt", head="segformer")
    for count in (150, 3):
        task = task_of(published.meta)
        task.config.head = config.head
        task.classes = task.classes[:count]
        task.head_options = {"num_classes": count, "channels": 256}
        torch.manual_seed(1)
        model = task.build_model()
        report = task.init(model, str(path))
        own, theirs = model.state_dict(), published.state_dict()
        fresh = [name for name in own if own[name].shape != theirs[name].shape or not own[name].equal(theirs[name])]
        assert (
            fresh
            == report.reinitialised
            == ([] if count == 150 else ["head.classifier.weight", "head.classifier.bias"])
        )
        assert report.licence == "non-commercial research only"


# ---- Panoptic FPN -----------------------------------------------------------------------------------------------


def pyramid_levels(entries, maps):
    levels = [
        F.conv2d(x, entries[f"neck.lateral_convs.{i}.conv.weight"], entries[f"neck.lateral_convs.{i}.conv.bias"])
        for i, x in enumerate(maps)
    ]
    for i in (3, 2, 1):
        levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], levels[i - 1].shape[2:], mode="nearest")
    return [
        F.conv2d(x, entries[f"neck.fpn_convs.{i}.conv.weight"], entries[f"neck.fpn_convs.{i}.conv.bias"], padding=1)
        for i, x in enumerate(levels)
    ]


def semantic_logits(entries, levels):
    total = 0
    for i, (x, depth) in enumerate(zip(levels, (1, 1, 2, 3), strict=True)):
        for j in range(depth):
            layer = f"semantic_head.conv_upsample_layers.{i}.conv.{j}"
            x = F.conv2d(x, entries[f"{layer}.conv.weight"], padding=1)
            x = F.group_norm(x, 12, entries[f"{layer}.gn.weight"], entries[f"{layer}.gn.bias"]).relu()
            if i:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        total = total + x
    return F.conv2d(total, entries["semantic_head.conv_logits.weight"], entries["semantic_head.conv_logits.bias"])


def decoded(anchors, deltas, size, deviations=(1, 1, 1, 1)):
    """Boxes (N, 4) of deltas from anchors, inside the image; sides change by 1000 / 16 at most."""
    dx, dy, dw, dh = (deltas * torch.tensor(deviations)).unbind(1)
    width, height = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    x, y = (anchors[:, 0] + anchors[:, 2]) / 2 + dx * width, (anchors[:, 1] + anchors[:, 3]) / 2 + dy * height
    most = math.log(1000 / 16)
    width, height = width * dw.clamp(-most, most).exp(), height * dh.clamp(-most, most).exp()
    boxes = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
    return torch.minimum(boxes.clamp(min=0), torch.tensor([size[1], size[0]] * 2))


def proposals_of(entries, levels, size):
    """Anchors of exact sides, 1000 a level, NMS 0.7 within a level, 1000 in all."""
    found = []
    for number, x in enumerate([*levels, levels[-1][:, :, ::2, ::2]]):
        stride = 4 * 2**number
        x = F.conv2d(x, entries["rpn_head.rpn_conv.weight"], entries["rpn_head.rpn_conv.bias"], padding=1).relu()
        scores = F.conv2d(x, entries["rpn_head.rpn_cls.weight"], entries["rpn_head.rpn_cls.bias"])[0].sigmoid()
        deltas = F.conv2d(x, entries["rpn_head.rpn_reg.weight"], entries["rpn_head.rpn_reg.bias"])[0]
        anchors = []
        for row in range(x.shape[2]):
            for column in range(x.shape[3]):
                for ratio in (0.5, 1.0, 2.0):
                    width, height = 8 * stride / math.sqrt(ratio), 8 * stride * math.sqrt(ratio)
                    left, top = column * stride, row * stride
                    anchors.append([left - width / 2, top - height / 2, left + width / 2, top + height / 2])
        scores, deltas = scores.permute(1, 2, 0).flatten(), deltas.permute(1, 2, 0).reshape(-1, 4)
        best = scores.argsort(descending=True)[:1000]
        boxes = decoded(torch.tensor(anchors)[best], deltas[best], size)
        found.append((boxes, scores[best], torch.full_like(best, number)))
    boxes, scores, numbers = (torch.cat(parts) for parts in zip(*found, strict=True))
    sized = ((boxes[:, 2:] - boxes[:, :2]) > 1e-3).all(1)
    boxes, scores, numbers = boxes[sized], scores[sized], numbers[sized]
    return boxes[batched_nms(boxes, scores, numbers, 0.7)[:1000]]


def pooled(levels, boxes, side):
    """RoIAlign as Detectron2 words it: half a pixel's shift, as many samples as a bin has pixels."""
    made = []
    for box in boxes:
        extent = float(((box[2] - box[0]) * (box[3] - box[1])).sqrt())
        level = min(max(math.floor(math.log2(extent / 56 + 1e-6)), 0), 3)
        x = levels[level]
        left, top, right, bottom = (box / (4 * 2**level) - 0.5).tolist()
        places = []
        for start, stop, length in ((top, bottom, x.shape[2]), (left, right, x.shape[3])):
            count = max(1, math.ceil((stop - start) / side))
            at = start + (torch.arange(side * count) + 0.5) * (stop - start) / (side * count)
            places.append(
                (at.clamp(0, length - 1) * 2 / (length - 1) - 1, ((at >= -1) & (at <= length)).float(), count)
            )
        (rows, seen_rows, n), (columns, seen_columns, m) = places
        grid = torch.stack([columns.expand(len(rows), -1), rows[:, None].expand(-1, len(columns))], 2)
        samples = F.grid_sample(x, grid[None], mode="bilinear", align_corners=True)
        samples = samples * seen_rows[:, None] * seen_columns
        made.append(F.avg_pool2d(samples, (n, m))[0])
    return torch.stack(made)


def detections_of(entries, levels, size):
    """Boxes, labels from 0, scores and masks (N, 28, 28); the background is the last class."""
    head = {name.removeprefix("roi_head."): value for name, value in entries.items() if name.startswith("roi_head.")}
    proposals = proposals_of(entries, levels, size)
    x = pooled(levels, proposals, 7).flatten(1)
    for i in range(2):
        x = F.linear(x, head[f"bbox_head.shared_fcs.{i}.weight"], head[f"bbox_head.shared_fcs.{i}.bias"]).relu()
    scores = F.linear(x, head["bbox_head.fc_cls.weight"], head["bbox_head.fc_cls.bias"]).softmax(1)[:, :-1]
    deltas = F.linear(x, head["bbox_head.fc_reg.weight"], head["bbox_head.fc_reg.bias"]).unflatten(1, (-1, 4))
    rows, labels = (scores > 0.05).nonzero().unbind(1)
    scores = scores[rows, labels]
    boxes = decoded(proposals[rows], deltas[rows, labels], size, (0.1, 0.1, 0.2, 0.2))
    kept = batched_nms(boxes, scores, labels, 0.5)[:100]
    boxes, labels, scores = boxes[kept], labels[kept], scores[kept]
    x = pooled(levels, boxes, 14)
    for i in range(4):
        name = f"mask_head.convs.{i}.conv"
        x = F.conv2d(x, head[f"{name}.weight"], head[f"{name}.bias"], padding=1).relu()
    x = F.conv_transpose2d(x, head["mask_head.upsample.weight"], head["mask_head.upsample.bias"], stride=2).relu()
    masks = F.conv2d(x, head["mask_head.conv_logits.weight"], head["mask_head.conv_logits.bias"]).sigmoid()
    return boxes, labels, scores, masks[torch.arange(len(labels)), labels]


@torch.no_grad()
def test_panoptic_network_gives_the_detections_and_logits_of_the_authors_heads(panoptic):
    entries, path = panoptic
    found = dense_file(path)
    size = (96, 128)  # small, and a multiple of 32, so that the image is neither resized nor padded
    network = assemble("lvt", "panoptic_fpn", {}, {**found.head_options, "min_size": [96], "max_size": 128}).eval()
    network.load_state_dict(found.state_for(network, "lvt"))
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(2))
    result = network([image])[0]

    levels = pyramid_levels(entries, encoder_maps(entries, ((image - MEAN[:, None, None]) / STD[:, None, None])[None]))
    semantic = F.interpolate(semantic_logits(entries, levels), scale_factor=4, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(result["semantic"], semantic, rtol=1e-3, atol=1e-4)

    boxes, labels, scores, masks = detections_of(entries, levels, size)
    assert 10 < len(boxes) <= 100
    assert len(result["boxes"]) == len(boxes)
    # of near ties of scores another one may be suppressed
    others = 1e6 * (labels[:, None] + 1 != result["labels"])
    gaps, closest = ((boxes[:, None] - result["boxes"]).abs().amax(2) + others).min(1)
    same = gaps < 0.05
    assert same.sum() >= 0.95 * len(boxes)
    boxes, scores, masks, closest = boxes[same], scores[same], masks[same], closest[same]
    torch.testing.assert_close(result["scores"][closest], scores, rtol=1e-3, atol=1e-3)
    pasted = paste_masks_in_image(masks[:, None], boxes, size)
    torch.testing.assert_close(result["masks"][closest], pasted, rtol=1e-3, atol=2e-3)


def test_panoptic_file_is_described_as_its_authors_measure(panoptic):
    meta = open_network(str(panoptic[1]), "lvt").meta
    assert (meta.head, meta.task, len(meta.classes)) == ("panoptic_fpn", "panoptic_segmentation", 133)
    assert (meta.classes[0], meta.classes[79], meta.classes[80], meta.classes[-1]) == (
        "person",
        "toothbrush",
        "banner",
        "rug-merged",
    )
    assert (meta.head_options["min_size"], meta.head_options["max_size"]) == ([800], 1333)
    assert meta.settings == {"detection": {"max_side": 1333}}


def test_a_panoptic_file_does_not_start_a_network_that_pools_otherwise(panoptic):
    published = open_network(str(panoptic[1]), "lvt")
    task = task_of(published.meta)
    report = task.init(task.build_model(), str(panoptic[1]))
    assert report.reinitialised == []
    task.head_options = {name: value for name, value in task.head_options.items() if name != "aligned"}
    with pytest.raises(UserError, match=r"add --head_options '\{\"aligned\": true"):
        task.init(task.build_model(), str(panoptic[1]))


# ---- what is refused, and what is read --------------------------------------------------------------------------


def test_prefixes_of_wrappers_and_safetensors_are_read(segmenter, tmp_path):
    entries, path = segmenter
    expected = open_network(str(path), "lvt").state_dict()
    save({f"module.{name}": value for name, value in entries.items()}, tmp_path / "a.pth")
    save_file(entries, tmp_path / "b.safetensors")
    for file in ("a.pth", "b.safetensors"):
        found = open_network(str(tmp_path / file), "lvt").state_dict()
        assert all(found[name].equal(value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda e: e.pop("decode_head.linear_c2.proj.bias"), r"lacks head\.projections\.1\.bias"),
        (lambda e: e.update({"decode_head.extra": torch.zeros(1)}), r"has decode_head\.extra besides"),
        (
            lambda e: e.pop("backbone.backbone.3.1.1.norm2.bias"),
            r"lacks backbone\.network\.stages\.3\.blocks\.1\.norm2",
        ),
        (lambda e: e.update({"decode_head.linear_pred.weight": torch.zeros(3)}), "is damaged"),
        (lambda e: e.update({"decode_head.linear_pred.bias": torch.full((150,), math.nan)}), "not finite"),
    ],
)
def test_every_difference_is_named(segmenter, tmp_path, change, sentence):
    entries = dict(segmenter[0])
    change(entries)
    with pytest.raises(UserError, match=sentence):
        open_network(str(save(entries, tmp_path / "w.pth")), "lvt")


def test_another_network_and_other_classes(segmenter, tmp_path):
    with pytest.raises(UserError, match=r"holds weights of segformer\.pth, not of mat_1"):
        open_network(str(segmenter[1]), "mat_1")
    two = filled(segmenter_shapes(2))
    assert open_network(str(save(two, tmp_path / "two.pth")), "lvt").meta.classes == ["a", "b"]  # stated by the file
    three = filled(segmenter_shapes(3))
    assert open_network(str(save(three, tmp_path / "three.pth")), "lvt").meta.classes == ["0", "1", "2"]


def test_python_code_in_a_file_is_refused(segmenter, tmp_path):
    save(segmenter[0], tmp_path / "w.pth", config=fractions.Fraction(1, 2))
    with pytest.raises(UserError, match="holds Python code"):
        open_network(str(tmp_path / "w.pth"), "lvt")
