"""The loss of token labelling, against the authors' values and against sums written out."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitrail.tasks.losses import class_target, mixed_target, token_label_loss

BOX = (1, 2, 4, 6)


@pytest.fixture(scope="module")
def authors():
    """Logits, token logits and targets of the stored values."""
    path = Path(os.environ.get("VITRAIL_TEST_DATA", "/nowhere")).parent / "parity" / "fill.py"
    if not path.exists():
        pytest.skip("no reference outputs beside VITRAIL_TEST_DATA")
    spec = importlib.util.spec_from_file_location("fill", path)
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)

    def tensor(name, *shape):
        return torch.from_numpy(fill.fill(f"tl0.{name}", shape))

    return 3 * tensor("cls", 4, 10), 10 * tensor("aux", 4, 49, 10), (20 * tensor("target", 4, 10, 51)).softmax(1)


def test_the_authors_losses(authors):
    logits, tokens, target = authors
    assert token_label_loss(logits, tokens, target, BOX).item() == pytest.approx(4.00943, abs=5e-6)
    with_truth = token_label_loss(logits, tokens, target, BOX, ground_truth=True)
    assert with_truth.item() == pytest.approx(3.99768, abs=5e-6)
    assert token_label_loss(logits, tokens, target[:, :, 0], BOX).item() == pytest.approx(3.8844, abs=5e-6)


def written_out(logits, tokens, target, box, class_weight, token_weight):
    """The loss as sums over images, tokens and classes."""
    batch, count, classes = tokens.shape
    area = (box[2] - box[0]) * (box[3] - box[1])
    total = 0.0
    for b in range(batch):
        own, partner = target[b, :, 1], target[batch - 1 - b, :, 1]
        label = (count - area) / count * own + area / count * partner
        total -= (
            class_weight
            / batch
            * sum(float(label[k] * (logits[b, k] - logits[b].logsumexp(0))) for k in range(classes))
        )
        for n in range(count):
            log_p = tokens[b, n] - tokens[b, n].logsumexp(0)
            total -= token_weight / (batch * count) * float((target[b, :, 2 + n] * log_p).sum())
    return total


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(2, 5),
    st.floats(0, 2),
    st.floats(0, 2),
    st.data(),
)
def test_the_loss_is_the_sum_of_its_definition(batch, rows, columns, classes, class_weight, token_weight, data):
    top, left = data.draw(st.integers(0, rows)), data.draw(st.integers(0, columns))
    box = (top, left, data.draw(st.integers(top, rows)), data.draw(st.integers(left, columns)))
    count = rows * columns
    logits, tokens = torch.randn(batch, classes), torch.randn(batch, count, classes)
    target = torch.randn(batch, classes, 2 + count).softmax(1)
    ours = token_label_loss(logits, tokens, target, box, class_weight, token_weight).item()
    assert ours == pytest.approx(written_out(logits, tokens, target, box, class_weight, token_weight), abs=1e-4)


def test_the_true_class_weighs_more_where_the_teacher_agrees():
    truth, teacher = torch.eye(3)[[0, 1]], torch.tensor([[0.6, 0.4, 0.0], [0.6, 0.4, 0.0]])
    target = torch.stack((truth, teacher), 2)
    assert torch.equal(class_target(target), teacher)
    torch.testing.assert_close(
        class_target(target, ground_truth=True), torch.tensor([[0.8, 0.2, 0.0], [0.54, 0.46, 0.0]])
    )


def test_labels_are_mixed_by_the_share_of_the_box():
    target = torch.eye(2)
    assert torch.equal(mixed_target(target, (0, 0, 1, 1), 4), torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
    assert torch.equal(mixed_target(target, (0, 0, 0, 0), 4), target)


def test_a_target_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 5, 7\) is not allowed; give \(2, 5\) or \(2, 5, 6\)"):
        token_label_loss(torch.zeros(2, 5), torch.zeros(2, 4, 5), torch.zeros(2, 5, 7), BOX)
