from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from vitrail.config.data import AugmentConfig, DataConfig
from vitrail.config.train import TrainConfig
from vitrail.engine.launch import seed_everything
from vitrail.errors import UserError
from vitrail.metrics.classification import ClassificationMetrics
from vitrail.tasks.base import measure
from vitrail.tasks.classification import Classification, predictions
from vitrail.tasks.preprocess import preprocess_of


def task_of(**changes) -> Classification:
    return Classification(TrainConfig(**{"model": "test_vit", **changes}))


class Fixed(nn.Module):
    """A network that answers the same logits to anything."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x):
        return self.logits


# ---- input ------------------------------------------------------------------------------------------------------


def test_preprocessing_is_the_networks_own_unless_told():
    own = preprocess_of(TrainConfig(model="mat_1", data=DataConfig(name="folder")))
    assert (own.image_size, own.crop_pct, own.in_chans) == ((224, 224), 0.9, 3)
    assert own.mean == (0.485, 0.456, 0.406)
    assert preprocess_of(TrainConfig(model="mat_1")).image_size == (32, 32)  # of the digits
    small = preprocess_of(TrainConfig(model="mat_1", image_size=48))
    assert (small.image_size, small.crop_pct) == ((48, 48), 1.0)
    told = preprocess_of(TrainConfig(model="mat_1", image_size=(96, 128), mean=(0.5,) * 3, crop_pct=0.8))
    assert (told.image_size, told.mean, told.crop_pct) == ((96, 128), (0.5,) * 3, 0.8)
    grey = preprocess_of(TrainConfig(model="mat_1", model_options={"in_chans": 1}))
    assert grey.in_chans == 1
    assert grey.mean == pytest.approx((0.449,))


def test_unknown_network_is_named():
    with pytest.raises(UserError, match=r"Unknown model 'mat_9': did you mean mat_"):
        preprocess_of(TrainConfig(model="mat_9"))


def test_network_has_an_output_a_class():
    task = task_of()
    assert task.build_model()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert task.is_head("head.weight", task.build_model())
    assert not task.is_head("blocks.0.norm1.weight", task.build_model())


# ---- loss -------------------------------------------------------------------------------------------------------


def test_smoothed_loss_by_hand():
    logits, y = torch.randn(6, 10), torch.tensor([0, 1, 2, 3, 4, 9])
    loss, right = task_of(smoothing=0.1).loss(Fixed(logits), (torch.zeros(6, 3, 32, 32), y))
    q = torch.full((6, 10), 0.1 / 10)
    q[range(6), y] += 0.9
    expected = -(q * (logits.exp() / logits.exp().sum(1, keepdim=True)).log()).sum(1).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(loss, LabelSmoothingCrossEntropy(0.1)(logits, y))
    assert right == sum(int(logits[i].argmax() == y[i]) for i in range(6))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_mixup_by_hand(monkeypatch, smoothing):
    task = task_of(smoothing=smoothing, augment=AugmentConfig(mixup=0.8))
    monkeypatch.setattr(np.random, "beta", lambda *_, **__: 0.7)
    x, y = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    mixed, target = task.mix((x.clone(), y))
    torch.testing.assert_close(mixed, 0.7 * x + 0.3 * x.flip(0))
    hard = F.one_hot(y, 10) * (1 - smoothing) + smoothing / 10
    torch.testing.assert_close(target, 0.7 * hard + 0.3 * hard.flip(0))
    logits = torch.randn(4, 10)
    loss, right = task.loss(Fixed(logits), (mixed, target))
    torch.testing.assert_close(loss, -(target * logits.log_softmax(1)).sum(1).mean())
    torch.testing.assert_close(loss, SoftTargetCrossEntropy()(logits, target))
    assert right == (logits.argmax(1) == y).sum()  # 0.7 of each image is its own class


def test_cutmix_weighs_by_area():
    task = task_of(augment=AugmentConfig(cutmix=1.0))
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 32, 32).contiguous()
    seed_everything(3)
    mixed, target = task.mix((x, torch.arange(4)))
    for i in range(4):
        share = (mixed[i, 0] == i).float().mean()
        assert 0 < share < 1
        torch.testing.assert_close(target[i, i], share)
        torch.testing.assert_close(target[i, 3 - i], 1 - share)
    assert torch.equal(x[0], torch.zeros(3, 32, 32))  # the caller's batch is as before


def test_token_labels_by_hand():
    logits, tokens, y = torch.randn(4, 10), torch.randn(4, 6, 10), torch.arange(4)
    found, _ = task_of(smoothing=0.1).loss(lambda _: (logits, tokens, (0, 1, 2, 3)), (torch.zeros(4, 3, 32, 32), y))
    q = F.one_hot(y, 10) * 0.9 + 0.01
    mixed = (2 * q + 4 * q.flip(0)) / 6  # the box covers 4 of the 6 tokens
    expected = -(mixed * logits.log_softmax(1)).sum(1).mean()
    expected += 0.5 * -(q[:, None] * tokens.log_softmax(2)).sum(2).mean()
    torch.testing.assert_close(found, expected)


def test_odd_batches_cannot_be_mixed():
    with pytest.raises(UserError, match="pair images, but each process has 3"):
        task_of(augment=AugmentConfig(mixup=0.8)).mix((torch.zeros(3, 3, 8, 8), torch.arange(3)))


def test_parts_of_a_batch_and_their_shares():
    batch = torch.randn(10, 3, 4, 4), torch.arange(10)
    parts = task_of().split(batch, 4)
    assert [len(part[0]) for part, _ in parts] == [3, 3, 3, 1]
    assert [share for _, share in parts] == [0.3, 0.3, 0.3, 0.1]
    assert torch.equal(torch.cat([part[1] for part, _ in parts]), batch[1])


# ---- metrics ----------------------------------------------------------------------------------------------------


def naive(logits, y, classes):
    ranked = [sorted(range(classes), key=lambda c, row=row: -row[c]) for row in logits.tolist()]
    hits = [[r[0] == t for r, t in zip(ranked, y.tolist(), strict=True) if t == c] for c in range(classes)]
    confusion = [[0] * classes for _ in range(classes)]
    for r, t in zip(ranked, y.tolist(), strict=True):
        confusion[t][r[0]] += 1
    return {
        "top1": 100 * np.mean([r[0] == t for r, t in zip(ranked, y.tolist(), strict=True)]),
        "top5": 100 * np.mean([t in r[:5] for r, t in zip(ranked, y.tolist(), strict=True)]),
        "per_class": [100 * np.mean(h) if h else None for h in hits],
        "mean_class": np.mean([100 * np.mean(h) for h in hits if h]),
        "loss": np.mean([-torch.log_softmax(row.double(), 0)[t].item() for row, t in zip(logits, y, strict=True)]),
        "confusion": confusion,
    }


@pytest.mark.parametrize("classes", [2, 5, 12])
def test_metrics_against_a_naive_count(classes):
    logits, y = torch.randn(200, classes) + 2, torch.randint(0, classes - 1, (200,))  # the last class has no image
    logits[torch.arange(200), y] += 1
    names = [f"c{i}" for i in range(classes)]
    counts = ClassificationMetrics(names)
    for part in torch.arange(200).split(64):
        counts.update(logits[part], (None, y[part], part))
    found, expected = counts.compute(), naive(logits, y, classes)
    for name in ("top1", "top5", "mean_class", "loss"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6)
    assert [row["accuracy"] for row in found["per_class"]] == pytest.approx(expected["per_class"])
    assert [row["class"] for row in found["per_class"]] == names
    assert counts.confusion.tolist() == expected["confusion"]
    assert found["images"] == 200
    assert classes > 5 or found["top5"] == 100


def test_counts_add_up_over_processes():
    logits, y = torch.randn(30, 4), torch.randint(0, 4, (30,))
    whole, a, b, total = (ClassificationMetrics("wxyz") for _ in range(4))
    whole.update(logits, (None, y))
    a.update(logits[:11], (None, y[:11]))
    b.update(logits[11:], (None, y[11:]))
    total.load([a.state(), b.state()])
    found, expected = total.compute(), whole.compute()
    assert found.pop("loss") == pytest.approx(expected.pop("loss"))
    assert found == expected


def test_nothing_to_measure_on():
    with pytest.raises(UserError, match="no validation images"):
        ClassificationMetrics("ab").compute()


def test_report_writes_table_and_image(tmp_path):
    counts = ClassificationMetrics(["a", "b"])
    counts.update(torch.tensor([[1.0, 0], [1, 0], [0, 1]]), (None, torch.tensor([0, 1, 1])))
    counts.report(tmp_path)
    assert (tmp_path / "per_class.csv").read_text().splitlines() == [
        "class,accuracy,images,precision",
        "a,100.0,1,50.0",
        "b,50.0,2,100.0",
    ]
    assert (tmp_path / "confusion.png").stat().st_size > 1000


def test_measure_sums_over_processes_and_reports_each_batch():
    batches = [(torch.zeros(2, 1), torch.tensor([0, 1])), (torch.zeros(2, 1), torch.tensor([1, 1]))]
    model = Fixed(torch.tensor([[1.0, 0], [0, 1]])).train()
    seen = []
    counts = measure(
        model,
        batches,
        ClassificationMetrics("ab"),
        gather=lambda state: [state, state],
        each=lambda: seen.append(1),
    )
    assert (counts.compute()["images"], counts.compute()["top1"], len(seen)) == (8, 75.0, 2)
    assert not model.training


def test_predictions_are_ranked_probabilities():
    found = predictions(torch.tensor([[0.0, 2.0, 1.0]]), ["a", "b", "c"], 5)[0]
    assert [row["class"] for row in found] == ["b", "c", "a"]
    assert [row["index"] for row in found] == [1, 2, 0]
    assert sum(row["probability"] for row in found) == pytest.approx(1)
    assert found[0]["probability"] == pytest.approx(np.exp(2) / (1 + np.exp(1) + np.exp(2)))


def test_examples_are_validation_images_spread_over_the_set():
    task = task_of()
    found = task.examples(task.build_model(), torch.device("cpu"), 8)
    assert len(found) == len({row["name"] for row in found}) == 8
    assert {row["truth"] for row in found} <= set(task.classes)
    task.eval_set = SimpleNamespace(streaming=True)
    assert task.examples(task.build_model(), torch.device("cpu"), 8) == []
