"""Training steps on the device: half precision, average of the weights, resumed runs, a detector, compiled steps."""

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from annotated_helpers import write_coco
from head_helpers import SMALL as SMALL_HEADS
from network_helpers import NARROW, SMALLEST
from vitrail.checkpoint.run_dir import RunDirectory
from vitrail.config.data import AugmentConfig, DataConfig
from vitrail.config.train import OptimConfig, TrainConfig
from vitrail.engine.launch import StopSignal, accelerating
from vitrail.engine.trainer import Trainer, fit

FAMILIES = sorted(NARROW)
GPU = pytest.mark.gpu
#: fp16 trains on GPUs only
PRECISIONS = [("cpu", "bf16"), pytest.param("cuda", "bf16", marks=GPU), pytest.param("cuda", "fp16", marks=GPU)]
#: largest relative difference of a resumed run's weights where an operator of the GPU is not deterministic
RESUMED = 1e-3


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> Path:
    """80 + 20 images of ten classes, each class a colour under noise."""
    rng = np.random.default_rng(0)
    y = np.arange(100) % 10
    noise = rng.integers(-40, 40, (100, 32, 32, 3))
    x = (rng.integers(0, 256, (10, 3))[y][:, None, None] + noise).clip(0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("colours") / "colours.npz"
    np.savez(path, x_train=x[:80], y_train=y[:80], x_test=x[80:], y_test=y[80:])
    return path


def recipe(family: str, colours: Path, device: torch.device, output: Path, **changes) -> TrainConfig:
    """Narrow, one block a stage, 64 pixels."""
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in NARROW[family].items()}
    config = TrainConfig(
        model=SMALLEST[family],
        model_options={**options, "depths": [1, 1, 1, 1]},
        data=DataConfig("cifar10", root=str(colours)),
        augment=AugmentConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0),
        optim=OptimConfig(warmup_epochs=0),
        image_size=64,
        batch_size=16,
        epochs=2,
        lr=3e-3,
        device=device.type,
        output=str(output),
    )
    return replace(config, **changes)


@contextmanager
def training(config: TrainConfig) -> Iterator[Trainer]:
    """A run that has begun, without its end, where metrics are measured and curves drawn."""
    with accelerating(config) as accelerator, RunDirectory(config.output) as run:
        trainer = Trainer(config, run, accelerator, StopSignal())
        trainer.start()
        try:
            with trainer.progress:
                trainer.set_train_mode()
                yield trainer
        finally:
            trainer.events.close()


def steps(trainer: Trainer, count: int) -> Iterator[float]:
    """The losses of the first steps."""
    epoch = 0
    while True:
        trainer.batches.set_epoch(epoch)
        for batch in trainer.batches:
            yield float(trainer.train_step(batch)[0])
            trainer.state.step += 1
            if trainer.state.step == count:
                return
        epoch += 1


@pytest.mark.parametrize(("device", "precision"), PRECISIONS, indirect=["device"])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_learns(family, device, precision, colours, tmp_path):
    """One batch again and again; the first steps in fp16 may be left out, while the scale of the gradients is found."""
    config = recipe(family, colours, device, tmp_path / "run", precision=precision, lr=1e-2)
    with training(config) as trainer:
        batch = next(iter(trainer.batches))
        found = [float(trainer.train_step(batch)[0]) for _ in range(16)]
        assert all(p.dtype == torch.float32 and p.isfinite().all() for p in trainer.network.parameters())
    assert np.isfinite(found).all()
    assert found[-1] < found[0] - 0.3


def test_average_of_the_weights_by_hand(device, colours, tmp_path):
    config = recipe("mat", colours, device, tmp_path / "run", ema_decay=0.7, ema_warmup=False)
    with training(config) as trainer:
        expected = {name: value.detach().double().cpu() for name, value in trainer.network.named_parameters()}
        for step, _ in enumerate(steps(trainer, 3)):
            decay = 0.7 if step else 0.0  # timm's average begins as a copy after the first step
            for name, value in trainer.network.named_parameters():
                expected[name] = decay * expected[name] + (1 - decay) * value.detach().double().cpu()
        for name, value in trainer.ema.module.named_parameters():
            assert value.device.type == device.type
            torch.testing.assert_close(value.double().cpu(), expected[name], rtol=1e-5, atol=1e-6)


@contextmanager
def deterministic() -> Iterator[list[str]]:
    """Deterministic algorithms; what has none is listed when the block ends."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    found: list[str] = []
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
        found += [str(w.message) for w in caught if "deterministic implementation" in str(w.message)]
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


@pytest.mark.parametrize(
    ("device", "precision"), [("cpu", "fp32"), *(pytest.param("cuda", p, marks=GPU) for p in ("fp32", "fp16"))],
    indirect=["device"],
)  # fmt: skip
@pytest.mark.parametrize("family", ["mat", "partialformer"])
def test_a_resumed_run_ends_with_the_same_weights(family, device, precision, colours, tmp_path):
    config = recipe(family, colours, device, tmp_path / "whole", precision=precision, ema_decay=0.9, max_steps=7)
    with deterministic() as not_so:
        fit(config)
        resumed = replace(config, output=str(tmp_path / "resumed"))
        fit(replace(resumed, max_steps=3))
        fit(replace(resumed, resume=True))
    for name in ("model", "ema"):
        first, second = (load_file(tmp_path / run / "last" / f"{name}.safetensors") for run in ("whole", "resumed"))
        for key, value in first.items():
            if not_so:
                torch.testing.assert_close(second[key], value, rtol=RESUMED, atol=RESUMED)
            else:
                assert torch.equal(second[key], value), f"{name}: {key}"


@pytest.mark.parametrize(
    ("device", "precision", "within"),
    [("cpu", "bf16", 5e-2)]
    + [pytest.param("cuda", p, w, marks=GPU) for p, w in (("fp32", 1e-3), ("bf16", 5e-2), ("fp16", 1e-2))],
    indirect=["device"],
)
def test_a_detection_step_has_the_loss_of_the_processor(device, precision, within, tmp_path):
    config = TrainConfig(
        task="detection",
        model="mat_1",
        model_options={"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
        head="retinanet",
        head_options=dict(SMALL_HEADS["retinanet"]),
        data=DataConfig("coco", root=str(write_coco(tmp_path / "coco", {"train": 4, "val": 2}))),
        image_size=64,
        batch_size=2,
        epochs=2,
        device="cpu",
        output=str(tmp_path / "processor"),
    )
    with training(config) as trainer:
        expected = next(steps(trainer, 1))
    own = replace(config, device=device.type, precision=precision, output=str(tmp_path / "device"))
    with training(own) as trainer:
        found = list(islice(steps(trainer, 3), 3))
    assert np.isfinite(found).all()
    assert found[0] == pytest.approx(expected, rel=within)


def test_compiled_steps_learn_what_the_network_learns(compiling_device, colours, tmp_path):
    found = {}
    for compile in (False, True):
        output = tmp_path / f"compiled_{compile}"
        with training(recipe("mat", colours, compiling_device, output, compile=compile)) as trainer:
            found[compile] = list(steps(trainer, 4))
    assert found[True] == pytest.approx(found[False], rel=1e-3)


@pytest.mark.gpu
def test_tf32_rounds_products_of_the_run_alone(gpu, colours, tmp_path):
    x = torch.randn(256, 256, device=gpu)
    exact = (x.double() @ x.double()).float()
    if torch.cuda.get_device_capability(gpu) < (8, 0):
        pytest.skip("this GPU has no TF32")
    errors = {}
    for wanted in (False, True):
        with accelerating(recipe("mat", colours, gpu, tmp_path / "run", tf32=wanted)):
            errors[wanted] = float((x @ x - exact).abs().max() / exact.abs().max())
    assert errors[False] < 1e-5 < errors[True] < 1e-2
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.gpu
@pytest.mark.parametrize("pinned", [None, True, False])
def test_training_batches_are_pinned(gpu, colours, tmp_path, pinned):
    with training(recipe("mat", colours, gpu, tmp_path / "run", pin_memory=pinned)) as trainer:
        images, _ = next(iter(trainer.batches))
        assert images.is_pinned() == (pinned is not False)


@pytest.mark.gpu
def test_a_run_gives_its_memory_back(gpu, colours, tmp_path):
    used = []
    for name in ("first", "second"):
        fit(recipe("mat", colours, gpu, tmp_path / name, max_steps=2))
        gc.collect()
        used.append(torch.cuda.memory_allocated(gpu))
    assert used[1] <= used[0]
