"""A teacher's label maps: what each place is called, and training with them by command."""

import io
import json
import tarfile

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import vitrail  # noqa: F401
from vitrail.checkpoint.description import WeightsMeta
from vitrail.checkpoint.format import read_meta, save_weights
from vitrail.checkpoint.load import open_network
from vitrail.cli import main
from vitrail.data import Preprocess
from vitrail.engine.make_token_labels import location_logits, top_scores

COLOURS = {"blue": (20, 30, 200), "red": (200, 30, 20), "yellow": (200, 200, 20)}
TEACHER = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
STUDENT = ["--model", "lvt", "--model_options", '{"depths": [1, 1, 1, 1]}']
QUICK = ["--image_size", "64", "--batch_size", "4", "--epochs", "1", "--max_steps", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for name, colour in COLOURS.items():
        (root / name).mkdir()
        for i in range(4):
            noise = np.random.default_rng(i).integers(-20, 20, (40, 60, 3))
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Fresh weights under the classes of the photos."""
    torch.manual_seed(0)
    model = timm.create_model("mat_1", num_classes=3, **TEACHER)
    meta = WeightsMeta(
        model="mat_1",
        model_options=TEACHER,
        classes=list(COLOURS),
        preprocess=Preprocess((64, 64), crop_pct=1.0),
        licence="CC-BY-NC-4.0",
        training_data="noise",
    )
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_weights(path, model.state_dict(), meta)
    return str(path)


@pytest.fixture(scope="module")
def maps(photos, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    data = ["--data", "folder", "--data.root", str(photos)]
    assert main(["token_labels", teacher, *data, "--output", str(folder), "--image_size", "64", "96"]) == 0
    return folder


# ---- what a place is called -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["resnet10t", "test_convnext", "test_vit", "test_vit4", "swin_tiny_patch4_window7_224"]
)
@torch.no_grad()
def test_the_places_average_to_the_image(name):
    """Where the head is linear behind a mean; where it is not, an image of one place is that place."""
    options = {"img_size": 64} if name.startswith(("swin", "test_vit")) else {}
    if name.startswith("test_vit"):
        options |= {"global_pool": "avg", "fc_norm": False}
    model = timm.create_model(name, num_classes=5, **options).eval()
    x = torch.randn(2, 3, 64, 64)
    places = location_logits(model, x)
    assert places.shape[:2] == (2, 5)
    if name == "test_convnext":  # a norm follows the pooling: each place through the head by itself
        features = model.forward_features(x)
        one = model.forward_head(features[:, :, 1:2, :1])
        torch.testing.assert_close(places[:, :, 1, 0], one)
    else:
        torch.testing.assert_close(places.mean((2, 3)), model(x))


@torch.no_grad()
def test_tokens_of_a_network_with_a_class_token():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=(32, 64), depth=1).eval()
    x = torch.randn(1, 3, 32, 64)
    tokens = model.forward_features(x)[:, 1:]
    places = location_logits(model, x)
    assert places.shape == (1, 5, 2, 4)
    torch.testing.assert_close(places.flatten(2).transpose(1, 2), model.head(tokens))


@pytest.mark.parametrize("name", ["pslt_tiny", "pale_tiny", "emsnet_xxtiny", "partialformer_b0"])
@torch.no_grad()
def test_our_networks_teach(name):
    model = timm.create_model(name, num_classes=5).eval()
    x = torch.randn(1, 3, 64, 96)
    places = location_logits(model, x)
    assert places.shape == (1, 5, 2, 3)
    features = model.forward_features(x)
    torch.testing.assert_close(places[:, :, 1, 2], model.forward_head(features[:, :, 1:2, 2:3]))


def test_scores_are_relative_to_the_mean_class():
    logits = torch.tensor([1.0, 5.0, 3.0]).view(1, 3, 1, 1)
    scores, classes = top_scores(logits, 2)
    assert (scores.flatten().tolist(), classes.flatten().tolist()) == ([2.0, 0.0], [1, 2])


# ---- by command -------------------------------------------------------------------------------------------------


def test_the_maps_are_the_teachers_word(photos, teacher, maps):
    about = json.loads((maps / "maps.json").read_text())
    assert (about["teacher"], about["licence"], about["image_size"]) == ("mat_1", "CC-BY-NC-4.0", [64, 96])
    found = sorted(str(path.relative_to(maps)) for path in maps.rglob("*.npy"))
    assert len(found) == 9  # a quarter of 12 is for validation
    model = open_network(teacher)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.meta.preprocess.mean, model.meta.preprocess.std))
    image = Image.open(photos / found[0].removesuffix(".npy")).resize((96, 64), Image.Resampling.BICUBIC)
    x = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - mean) / std
    with torch.no_grad():
        features = model.forward_features(x[None])
        expected = torch.stack(
            [model.forward_head(features[:, :, r, c, None, None])[0] for r in (0, 1) for c in range(3)]
        )
    stored = np.load(maps / found[0])
    assert stored.shape == (2, 3, 2, 3)
    scores, classes = torch.from_numpy(stored).float().flatten(2).permute(0, 2, 1)
    centred = expected - expected.mean(1, keepdim=True)
    torch.testing.assert_close(scores, centred.gather(1, classes.long()), atol=5e-3, rtol=5e-3)  # half precision
    assert (scores.diff(dim=1) <= 0).all()


def test_a_second_call_keeps_what_is_there(photos, teacher, tmp_path, capsys, mistake):
    argv = ["token_labels", teacher, "--data", "folder", "--data.root", str(photos), "--output", str(tmp_path)]
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "folder": str(tmp_path), "teacher": "mat_1", "made": 9, "kept": 0, "grid": [2, 2]
    }  # fmt: skip
    lost = next(tmp_path.rglob("*.npy"))
    content = lost.read_bytes()
    lost.unlink()
    assert main([*argv, "--json"]) == 0
    assert {"made": 1, "kept": 8}.items() <= json.loads(capsys.readouterr().out).items()
    assert lost.read_bytes() == content
    said = mistake(*argv, "--image_size", "96")
    assert "label maps with another image_size ([64, 64] there, [96, 96] here)" in said
    assert main([*argv, "--image_size", "96", "--overwrite"]) == 0
    assert np.load(lost).shape == (2, 3, 3, 3)


@pytest.mark.parametrize("more", [[], ["--token_ground_truth", "--token_swap_axes", "--smoothing", "0.1"]])
def test_training_with_label_maps(photos, maps, tmp_path, more):
    data = ["--data", "folder", "--data.root", str(photos)]
    argv = ["train", *STUDENT, *data, *QUICK, "--token_labels", str(maps), "--output", str(tmp_path / "run"), *more]
    assert main(argv) == 0
    meta = read_meta(tmp_path / "run")
    assert meta.model_options["mix_token"] is True
    assert meta.training_data == f"folder: {photos.name}; token labels of mat_1 (CC-BY-NC-4.0)"
    assert main(["predict", str(tmp_path / "run"), str(photos / "red"), "--device", "cpu"]) == 0


def test_mistakes_with_label_maps(photos, maps, teacher, tmp_path, mistake):
    data = ["--data", "folder", "--data.root", str(photos)]
    train = ["train", *data, *QUICK, "--output", str(tmp_path / "run")]
    lvt = [*train, *STUDENT, "--token_labels", str(maps)]
    assert "such as lvt or pale_tiny; not mat_1" in mistake(*train, "--token_labels", str(maps))
    assert "--augment.mixup 0" in mistake(*lvt, "--augment.mixup", "0.2")
    assert "model option mix_token: true" in mistake(*lvt, "--model_options.mix_token", "false")
    assert "nowhere is no folder" in mistake(*lvt[:-1], str(tmp_path / "nowhere"))
    assert "it needs --token_labels" in mistake(*train, "--token_ground_truth")
    assert "--token_loss_weight -1.0 must be 0 or more" in mistake(*lvt, "--token_loss_weight", "-1")
    assert not (tmp_path / "run").exists()
    label = ["token_labels", teacher, "--output", str(tmp_path / "maps")]
    assert "knows 3 classes, but the data has 10" in mistake(*label)
    assert "--top_k 0" in mistake(*label, *data, "--top_k", "0")
    assert "resnet10t" in mistake("evaluate", "timm:resnet10", *data)
    assert not (tmp_path / "maps").exists()


# ---- nothing outside the folder, nothing of the user's ------------------------------------------------------------


def files_below(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tar_of(path, members, photos):
    content = (photos / "red" / "0.png").read_bytes()
    with tarfile.open(path, "w") as tar:
        for name in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def labelled(teacher, output, *data):
    return main(["token_labels", teacher, *data, "--output", str(output), "--image_size", "64"])


@pytest.mark.parametrize(
    "odd", ["../../escaped/red/0.png", "blue/../../../red/0.png", "red/./0.png", "C:\\red\\0.png", "red//0.png"]
)
def test_members_of_an_archive_never_lead_out_of_the_folder(tmp_path, teacher, photos, capsys, odd):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    archive = tmp_path / "deep" / "er" / "t.tar"
    tar_of(archive, ["blue/0.png", "red/0.png", "yellow/0.png", odd], photos)
    before = files_below(tmp_path)
    data = ["--data", "timm", "--data.source", "folder", "--data.root", str(archive)]
    code = labelled(teacher, tmp_path / "deep" / "er" / "maps", *data)
    after = files_below(tmp_path)
    outside = {name for name in after if not name.startswith("deep/er/maps/")}
    assert outside == set(before)
    assert code in (0, 2)
    assert code == 0 or ".npy" not in "".join(after)  # refused before the first map


def test_a_link_in_the_folder_is_not_followed_out_of_it(tmp_path, teacher, photos, capsys):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "red").symlink_to(tmp_path / "elsewhere")
    assert labelled(teacher, tmp_path / "maps", "--data", "folder", "--data.root", str(photos)) == 2
    assert "leads out of" in capsys.readouterr().err
    assert not files_below(tmp_path / "elsewhere")


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize("name", ["0.png.npy", "maps.json", "notes.txt"])
def test_a_folder_of_other_files_is_refused(tmp_path, teacher, photos, capsys, overwrite, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("[7]")
    assert labelled(teacher, tmp_path / "mine", "--data", "folder", "--data.root", str(photos), *overwrite) == 2
    assert "--output" in (err := capsys.readouterr().err) or "damaged" in err
    assert files_below(tmp_path / "mine") == {name: b"[7]"}


def test_the_folder_of_the_images_and_no_name_are_refused(teacher, photos, capsys):
    before = files_below(photos)
    for output in (photos, photos / "red", ""):
        assert labelled(teacher, output, "--data", "folder", "--data.root", str(photos)) == 2
        assert "--output" in capsys.readouterr().err
    assert files_below(photos) == before
