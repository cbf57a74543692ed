"""Persons' images: what their names say, which of them a batch shows, and what is done to each."""

import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from data_samples import sample_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrail.config.tasks import ReidConfig
from vitrail.data import BadImage, DataConfig, Preprocess, isolated_rng
from vitrail.data.datasets.base import AnnotatedSet
from vitrail.data.datasets.market1501 import ReidSet, crop_of, open_market1501
from vitrail.data.identity_loader import IdentityLoader
from vitrail.data.loader import EvalLoader
from vitrail.data.transforms.base import PairTransform
from vitrail.data.transforms.reid import PersonAugmentation, PersonView
from vitrail.errors import UserError
from vitrail.metrics.retrieval import Gallery, retrieval

PARTS = {
    "bounding_box_train": ["0007_c1s1_000001_01", "0007_c2s1_000002_01", "-1_c1s1_000003_01", "0003_c2s1_000004_01"],
    "query": ["0100_c1s1_000005_00", "0042_c2s1_000006_00"],
    "bounding_box_test": ["-1_c2s1_000007_01", "0000_c1s1_000008_01", "0042_c1s3_000009_01", "0100_c6s1_000010_01"],
}


@pytest.fixture
def root(tmp_path) -> Path:
    """A set of ten images in the layout."""
    for part, stems in PARTS.items():
        (tmp_path / part).mkdir()
        for value, stem in enumerate(stems):
            sample_image(value, (8, 16)).save(tmp_path / part / f"{stem}.jpg")
    return tmp_path


def persons(root: Path, train: bool) -> ReidSet:
    return open_market1501(DataConfig("market1501", root=str(root)), train)


# ---- names and parts --------------------------------------------------------------------------------------------


def test_identities_are_numbered_anew_and_junk_is_not_learned(root):
    sample_image(9).save(root / "bounding_box_train" / "0000_c1s1_000011_01.png")
    (root / "bounding_box_train" / "Thumbs.db").write_bytes(b"of an old Windows")
    (root / "bounding_box_train" / "._0003_c2s1_000004_01.jpg").write_bytes(b"of a Mac")
    found = persons(root, train=True)
    assert found.classes == ["0003", "0007"]
    assert found.identities.tolist() == [0, 1, 1]
    assert found.skipped == {"junk": 1, "distractors": 1}
    targets = [found[i][1] for i in range(len(found))]
    assert [(t["identity"], t["pid"], t["camera"], t["query"]) for t in targets] == [
        (0, 3, 2, False),
        (1, 7, 1, False),
        (1, 7, 2, False),
    ]
    assert found.name(0) == str(root / "bounding_box_train" / "0003_c2s1_000004_01.jpg")
    assert found.image(0).size == (8, 16)


def test_queries_come_before_a_gallery_with_junk_and_distractors(root):
    (root / "bounding_box_train").rename(root / "elsewhere")  # measuring needs no part to learn from
    found = persons(root, train=False)
    targets = [found[i][1] for i in range(len(found))]
    assert [(t["pid"], t["camera"], t["query"]) for t in targets] == [
        (42, 2, True),
        (100, 1, True),
        (-1, 2, False),
        (0, 1, False),
        (42, 1, False),
        (100, 6, False),
    ]
    assert (found.num_queries, found.classes, found.skipped) == (2, [], {})
    assert {t["identity"] for t in targets} == {-1}


@given(pid=st.integers(-1, 12000), camera=st.integers(1, 20), rest=st.tuples(*[st.integers(0, 10**6)] * 3))
def test_a_name_is_read_as_it_is_written(pid, camera, rest):
    number = "-1" if pid == -1 else f"{pid:04d}"
    crop = crop_of(Path(f"a/{number}_c{camera}s{rest[0]}_{rest[1]:06d}_{rest[2]:02d}.jpg"))
    assert (crop.pid, crop.camera) == (pid, camera)


def test_names_of_real_crops(test_data, tmp_path):
    files = sorted((test_data / "market_mini" / "crops").glob("*.jpg"))
    crops = [crop_of(file) for file in files]
    assert [crop.pid for crop in crops] == [int(file.name.split("_")[0]) for file in files]
    assert [crop.camera for crop in crops] == [int(file.name.split("_c")[1].split("s")[0]) for file in files]
    (tmp_path / "bounding_box_train").symlink_to(files[0].parent)
    found = persons(tmp_path, train=True)
    assert found.skipped == {"junk": 0, "distractors": 1}
    assert len(found) == len(files) - 1 == 24
    assert found.image(0).size == (64, 128)


@pytest.fixture(scope="module")
def simulated(test_data, tmp_path_factory) -> Path:
    """reid_sim, unpacked."""
    folder = tmp_path_factory.mktemp("reid_sim")
    with tarfile.open(test_data / "reid_sim" / "reid_sim.tar") as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_counts_of_the_simulated_set(simulated):
    learn, held = persons(simulated, train=True), persons(simulated, train=False)
    assert (len(learn), len(learn.classes), learn.skipped) == (976, 122, {"junk": 0, "distractors": 0})
    pids = [int(name) for name in learn.classes]
    assert pids == sorted(pids)
    assert pids != list(range(pids[0], pids[0] + 122))
    assert Counter(learn.identities.tolist()) == dict.fromkeys(range(122), 8)
    assert all(learn.classes[i] == learn.path(n).name[:4] for n, i in enumerate(learn.identities))
    assert (held.num_queries, len(held)) == (202, 202 + 808 + 40 + 40)
    asked = {crop.pid for crop in held.crops[:202]}
    gallery = Counter(crop.pid for crop in held.crops[202:])
    assert (len(asked), gallery[-1], gallery[0]) == (101, 40, 40)
    assert asked == set(gallery) - {-1, 0}
    assert not asked & set(pids)


@pytest.mark.parametrize(
    "name",
    [
        "person.jpg",
        "0001_c1_000451_03.jpg",
        "0001_c1s1_000451.jpg",
        "-2_c1s1_000451_03.jpg",
        "0001_c1s1_000451_03_x.jpg",
        "0001_cAs1_000451_03.jpg",
        "_c1s1_000451_03.jpg",
    ],
)
def test_a_name_that_does_not_fit(root, name):
    sample_image().save(root / "query" / name)
    says = f"The name of {root / 'query' / name} does not fit: .* such as 0002_c1s1_000451_03.jpg"
    with pytest.raises(UserError, match=says):
        persons(root, train=False)
    assert len(persons(root, train=True)) == 3


def test_mistakes_of_a_set(root, tmp_path):
    with pytest.raises(UserError, match=r"--data market1501 needs --data\.root, the folder that holds bounding_box"):
        open_market1501(DataConfig("market1501"), train=True)
    archive = tmp_path / "market.tar"
    archive.write_bytes(b"")
    with pytest.raises(UserError, match=r"market\.tar is a file: unpack it"):
        persons(archive, train=True)
    with pytest.raises(UserError, match=f"{root / 'query'} has no folder bounding_box_train; Market-1501 has"):
        persons(root / "query", train=True)
    for file in (root / "query").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=f"{root / 'query'} has no images"):
        persons(root, train=False)
    (root / "bounding_box_train" / "0003_c2s1_000004_01.jpg").write_bytes(b"no")
    with pytest.raises(BadImage, match=r"0003_c2s1_000004_01\.jpg is not an image"):
        persons(root, train=True)[0]
    (root / "bounding_box_train" / "0003_c2s1_000004_01.jpg").unlink()
    with pytest.raises(UserError, match=r"bounding_box_train shows 1 identity\(ies\) to learn: at least two"):
        persons(root, train=True)


# ---- what can be measured ---------------------------------------------------------------------------------------


def written(folder: Path, queries: list[tuple[int, int]], gallery: list[tuple[int, int]]) -> Path:
    """Images of (identity, camera) to measure on."""
    for part, crops in (("query", queries), ("bounding_box_test", gallery)):
        (folder / part).mkdir(parents=True)
        for number, (pid, camera) in enumerate(crops):
            sample_image(number, (4, 8)).save(
                folder / part / f"{pid if pid < 0 else f'{pid:04d}'}_C{camera}S1_{number:06d}_01.PNG"
            )
    return folder


@pytest.mark.parametrize(
    ("queries", "gallery", "says"),
    [
        ([(1, 1), (2, 1)], [(1, 1), (2, 1), (3, 1)], r"all 5 images are by camera 1"),
        ([(1, 1), (2, 1)], [(1, 1), (2, 1), (3, 2)], r"share no identity under two cameras"),
        ([(1, 1)], [(2, 2), (-1, 2)], r"share no identity under two cameras"),
        ([(-1, 1)], [(-1, 2), (1, 1)], r"share no identity under two cameras"),
        ([(0, 1)], [(0, 2), (1, 1)], r"is a distractor"),
        ([(1, 1)], [(1, 2), (1, 3), (-1, 2)], r"no person but that of each query"),
    ],
)
def test_names_tell_that_nothing_can_be_measured(tmp_path, queries, gallery, says):
    with pytest.raises(UserError, match=says):
        persons(written(tmp_path, queries, gallery), False)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_names_tell_what_the_metrics_will_say(tmp_path_factory, data):
    crops = st.lists(st.tuples(st.sampled_from([-1, 1, 2, 3]), st.integers(1, 3)), min_size=1, max_size=6)
    queries, gallery = data.draw(crops), data.draw(crops)
    root = written(tmp_path_factory.mktemp("crops"), queries, gallery)
    random = np.random.RandomState(0)
    sides = [
        Gallery(random.rand(len(side), 4), *(np.array(part) for part in zip(*sorted(side, key=str), strict=True)))
        for side in (queries, gallery)
    ]
    try:
        skipped = retrieval(*sides)["skipped"]
    except UserError:
        skipped = None
    right = [q for q in queries if q[0] > 0 and any(g[0] == q[0] and g[1] != q[1] for g in gallery)]
    if not right or all(g[0] in (-1, q[0]) for q in right for g in gallery):  # nothing right, or nothing wrong
        with pytest.raises(UserError):
            persons(root, False)
        assert right or skipped is None
        return
    said = persons(root, False).remarks
    assert [int(text.split()[0]) for text in said] == ([skipped] if skipped else [])


def test_other_files_are_counted(root):
    (root / "query" / "0042_c1s1_000001_01.heic").write_bytes(b"x")
    (root / "query" / "Thumbs.db").write_bytes(b"x")
    assert "1 .heic" in persons(root, False).remarks[0]
    (root / "query" / f"{'9' * 30}_c1s1_000001_01.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="does not fit"):
        persons(root, False)


# ---- batches of identities --------------------------------------------------------------------------------------


class Counted(AnnotatedSet):
    """So many images of each identity, in an order that mixes them; none is read."""

    def __init__(self, counts):
        super().__init__([str(i) for i in range(len(counts))])
        self.identities = np.random.RandomState(0).permutation(np.repeat(np.arange(len(counts)), counts))

    def __len__(self):
        return len(self.identities)

    def __getitem__(self, index):
        return index, int(self.identities[index])

    def path(self, index):
        return f"{index}.jpg"

    def target(self, index, image):
        return {"identity": int(self.identities[index])}

    def annotations(self):
        return iter(self.identities.tolist())


class Told(PairTransform):
    """An image's number and a random one, and its identity."""

    def __call__(self, image, target):
        return torch.tensor([float(image), torch.rand(()).item()]), torch.tensor(target)


def plain(samples):
    """Samples as one tensor of numbers and one of identities."""
    return tuple(map(torch.stack, zip(*samples, strict=True)))


def loader_of(counts, persons, each, seed=0, **options) -> IdentityLoader:
    loader = IdentityLoader(Counted(counts), Told(), persons * each, each, seed, **options)
    loader.collate = plain
    return loader


def greedy(counts, persons, each) -> int:
    """How many batches can be filled, each by those identities that have most groups left."""
    left, batches = [max(1, count // each) for count in counts], 0
    while sum(groups > 0 for groups in left) >= persons:
        for i in sorted(range(len(left)), key=lambda i: -left[i])[:persons]:
            left[i] -= 1
        batches += 1
    return batches


@settings(deadline=None, max_examples=50)
@given(
    counts=st.lists(st.integers(1, 23), min_size=4, max_size=14),
    each=st.integers(2, 5),
    share=st.integers(2, 4),
    world=st.integers(1, 3),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 9),
)
def test_a_batch_shows_so_many_persons_so_often(counts, each, share, world, seed, epoch):
    world = min(world, len(counts) // share) or 1
    persons = min(share, len(counts)) * world
    alone = loader_of(counts, persons, each, seed)
    alone.set_epoch(epoch)
    batches = list(alone)
    assert len(batches) == len(alone) == greedy(counts, persons, each)
    shown = Counter()
    for x, y in batches:
        assert x.shape == (persons * each, 2)
        groups = y.view(persons, each)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0].tolist())) == persons
        numbers = x[:, 0].long()
        assert torch.equal(torch.from_numpy(alone.dataset.identities)[numbers], y)
        for images, identity in zip(numbers.view(persons, each).tolist(), groups[:, 0].tolist(), strict=True):
            assert len(set(images)) == min(each, counts[identity])
        shown.update(numbers.tolist())
    for number, times in shown.items():
        count = counts[alone.dataset.identities[number]]
        assert times <= (1 if count >= each else -(-each // count))

    # the same from several processes: slices of whole identities of the same batches
    parts = []
    for rank in range(world):
        loader = loader_of(counts, persons, each, seed, rank=rank, world=world)
        loader.set_epoch(epoch)
        parts.append(list(loader))
        for _, y in parts[-1]:
            assert set(Counter(y.tolist()).values()) == {each}
            assert len(set(y.tolist())) == persons // world >= 2
    for whole, *slices in zip(batches, *parts, strict=True):
        assert all(torch.equal(a, torch.cat(b)) for a, b in zip(whole, zip(*slices, strict=True), strict=True))


def test_an_epoch_shows_about_all_images(simulated):
    learn = persons(simulated, train=True)
    loader = IdentityLoader(learn, Told(), 64, 4, 0)
    assert len(loader) == 976 // 64
    orders = [loader.order(epoch) for epoch in range(2)]
    for order in orders:
        assert len(set(order.tolist())) == len(order) == 960
    assert not np.array_equal(*orders)
    assert set(np.concatenate(orders).tolist()) == set(range(976))


def test_order_depends_on_seed_and_epoch_and_never_changes():
    def order(seed, epoch):
        return loader_of([3, 2, 1, 5], 2, 2, seed).order(epoch).tolist()

    assert order(3, 1) == order(3, 1) == FROZEN
    assert order(3, 1) != order(3, 2)
    assert order(3, 1) != order(4, 1)


#: a resumed run of an older version relies on it
FROZEN = [7, 3, 8, 0, 1, 6, 9, 5]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_a_start_in_the_middle_change_nothing(workers):
    counts = [5, 3, 8, 2, 6]
    whole = list(loader_of(counts, 2, 2))
    loader = loader_of(counts, 2, 2, workers=workers)
    loader.set_epoch(0, 2)
    tail = list(loader)
    assert len(tail) == len(whole) - 2
    for one, other in zip(whole[2:], tail, strict=True):
        assert all(map(torch.equal, one, other))
    drawn = torch.cat([x[:, 1] for x, _ in whole])
    assert len(set(drawn.tolist())) == len(drawn)  # a repeated image changes in another way


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 10}, r"batch_size=10 cannot be divided into whole identities: give a multiple of 4"),
        ({"batch_size": 8, "world": 4, "rank": 1}, r"batch_size=8 .* a multiple of 16"),
        ({"batch_size": 8, "world": 2, "accumulate": 2}, r"batch_size=8 .* a multiple of 16"),
        ({"batch_size": 4}, r"batch_size=4 shows one identity at a time, .* give 8 or more"),
        ({"batch_size": 8, "world": 2}, r"batch_size=8 shows one identity at a time, .* give 16 or more"),
        ({"batch_size": 8, "accumulate": 2}, r"batch_size=8 shows one identity at a time, .* give 16 or more"),
        ({"batch_size": 24}, r"batch_size=24 needs 6 identities with 4 images each, but there are 5: .* at most 20"),
        ({"images_per_identity": 1}, r"images_per_identity=1 is not allowed"),
        ({"batch_size": 0}, r"batch_size=0.* not allowed"),
    ],
)
def test_batches_that_cannot_be(options, says):
    with pytest.raises(UserError, match=says):
        IdentityLoader(Counted([4] * 5), Told(), **{"batch_size": 16, "images_per_identity": 4, "seed": 0} | options)


# ---- what is done to an image ----------------------------------------------------------------------------------

#: no pixel of 8 bits becomes 0
INPUT = Preprocess((16, 8), (0.123, 0.234, 0.345), (0.5, 0.6, 0.7), "bicubic", 0.9)
STILL = {"hflip": 0.0, "padding": 0, "random_erasing": 0.0}
WHO = {"identity": 5, "pid": 70, "camera": 3, "query": True}


def normalised(pixels: np.ndarray) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (INPUT.mean, INPUT.std))
    return (torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1) - mean) / std


def augmented(image: Image.Image, **changes) -> torch.Tensor:
    x, identity = PersonAugmentation(ReidConfig(**STILL | changes), INPUT)(image, WHO)
    assert x.shape == (3, 16, 8)
    assert x.dtype == torch.float32
    assert identity.dtype == torch.int64
    assert identity == 5
    return x


@pytest.mark.parametrize("size", [(8, 16), (20, 31), (3, 40), (50, 5)])
def test_the_whole_image_is_seen(size):
    image = sample_image(size=size)
    expected = normalised(np.asarray(image.resize((8, 16), Image.Resampling.BICUBIC)))
    x, labels = PersonView(INPUT)(image, WHO)
    torch.testing.assert_close(x, expected)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [70, 3, 1]
    torch.testing.assert_close(augmented(image), expected)
    torch.testing.assert_close(augmented(image, hflip=1.0), expected.flip(2))


def test_a_crop_is_a_window_of_the_image_on_black():
    image = sample_image(size=(8, 16))
    padded = np.pad(np.asarray(image), ((2, 2), (2, 2), (0, 0)))
    windows = {(y, x): normalised(padded[y : y + 16, x : x + 8]) for y in range(5) for x in range(5)}
    seen = Counter()
    with isolated_rng(0):
        for _ in range(250):
            x = augmented(image, padding=2)
            seen.update(place for place, window in windows.items() if torch.allclose(x, window, atol=1e-6))
    assert seen.total() == 250
    assert set(seen) == set(windows)


def test_a_rectangle_of_the_mean_colour_is_erased():
    whole = normalised(np.asarray(sample_image(size=(8, 16))))
    heights = set()
    for seed in range(60):
        with isolated_rng(seed):
            x = augmented(sample_image(size=(8, 16)), random_erasing=1.0)
        gone = (x == 0).all(0)
        torch.testing.assert_close(x[:, ~gone], whole[:, ~gone])
        rows, cols = (gone.any(dim).nonzero()[:, 0] for dim in (1, 0))
        height, width = int(rows[-1] - rows[0] + 1), int(cols[-1] - cols[0] + 1)
        assert gone.sum() == height * width
        # shares of 0.02 to 0.4 of 128 pixels and ratios of 0.3 to 3.3, before sides are rounded
        assert (height - 0.5) * (width - 0.5) <= 0.4 * 128
        assert (height + 0.5) * (width + 0.5) >= 0.02 * 128
        assert (height - 0.5) / (width + 0.5) <= 1 / 0.3
        heights.add(height)
    assert len(heights) > 4


@pytest.mark.parametrize("name", ["hflip", "random_erasing"])
def test_how_often_an_image_is_changed(name):
    image, still = sample_image(size=(8, 16)), augmented(sample_image(size=(8, 16)))
    with isolated_rng(0):
        changed = sum(not torch.equal(augmented(image, **{name: 0.3}), still) for _ in range(400))
    assert 85 <= changed <= 155  # 120 +- 3.8 standard deviations


def test_grey_input():
    grey = Preprocess((16, 8), (0.2,), (0.4,), in_chans=1)
    image = sample_image(size=(8, 16))
    expected = (np.asarray(image.convert("L"), dtype=np.float32) / 255 - 0.2) / 0.4
    for transform in (PersonView(grey), PersonAugmentation(ReidConfig(**STILL), grey)):
        x, _ = transform(image, WHO)
        assert x.shape == (1, 16, 8)
        assert np.allclose(x[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hflip", 1.5),
        ("random_erasing", -0.1),
        ("margin", -1.0),
        ("margin", float("nan")),
        ("triplet_weight", float("inf")),
        ("padding", -1),
    ],
)
def test_settings_that_cannot_be(name, value):
    with pytest.raises(ValueError, match=re.escape(f"reid.{name}={value!r} is not allowed")):
        PersonAugmentation(ReidConfig(**{name: value}), INPUT)


def test_measuring_sees_each_image_once(root):
    data, seen = persons(root, train=False), {}
    for rank in range(2):
        for x, labels, numbers in EvalLoader(data, PersonView(INPUT), 4, rank=rank, world=2):
            assert x.shape[1:] == (3, 16, 8)
            seen |= dict(zip(numbers.tolist(), labels.tolist(), strict=True))
    expected = [[42, 2, 1], [100, 1, 1], [-1, 2, 0], [0, 1, 0], [42, 1, 0], [100, 6, 0]]
    assert seen == dict(enumerate(expected))
