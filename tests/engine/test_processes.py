"""Two processes over gloo: batch norms against one process, and mistakes that one or both of them meet."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
QUIET = {"capture_output": True, "text": True, "timeout": 300, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}

NORMS = """
import copy, json, sys
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from vitrail.engine.processes import with_synced_norms

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
worst = {}
for seed in range(6):
    torch.manual_seed(seed)
    shares = [(3, 3), (1, 5), (4, 1), (2, 2), (5, 3), (1, 1)][seed]
    total = sum(shares)
    conv = [nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6, momentum=None if seed == 2 else 0.3), nn.GELU(), BatchNormAct2d(6)]
    kinds = {
        "2d": (nn.Sequential(*conv), torch.randn(total, 3, 5, 4) * 3 + 20),
        "1d": (nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6, affine=seed != 1)), torch.randn(total, 3)),
        "tokens": (nn.Sequential(nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6)), torch.randn(total, 3, 7)),
    }
    for kind, (model, x) in kinds.items():
        alone = copy.deepcopy(model)
        keys = list(alone.state_dict())
        synced = DistributedDataParallel(with_synced_norms(model, torch.device("cpu")))
        assert list(synced.module.state_dict()) == keys
        mine = x[: shares[0]] if rank == 0 else x[shares[0] :]
        w = torch.randn(6)
        def loss_of(y):
            return (y.transpose(1, -1).sigmoid() * w).sum()
        for _ in range(2):
            y, z = synced(mine), alone(x)
            # DDP takes the mean over processes, the loss here is a sum
            (2 * loss_of(y)).backward()
            loss_of(z).backward()
        theirs = z[: shares[0]] if rank == 0 else z[shares[0] :]
        found = [(y - theirs).abs().max().item()]
        for (name, a), b in zip(synced.module.named_parameters(), alone.parameters(), strict=True):
            found.append(((a.grad - b.grad).abs().max() / (1 + b.grad.abs().max())).item())
        for a, b in zip(synced.module.buffers(), alone.buffers(), strict=True):
            found.append((a - b).abs().max().item())
        synced.eval(), alone.eval()
        found.append((synced.module(mine) - alone(mine)).abs().max().item())
        worst[f"{seed} {kind}"] = max(found)
dist.barrier()
if rank == 0:
    open(sys.argv[1], "w").write(json.dumps(worst))
dist.destroy_process_group()
"""


def test_synced_norms_are_those_of_one_process(tmp_path):
    """Outputs, gradients and running statistics over random sizes, shares that differ, all kinds of batch norms."""
    script, result = tmp_path / "norms.py", tmp_path / "worst.json"
    script.write_text(NORMS)
    done = subprocess.run([*TORCHRUN, str(script), str(result)], **QUIET)
    assert done.returncode == 0, done.stderr
    worst = json.loads(result.read_text())
    assert len(worst) == 18
    assert max(worst.values()) < 2e-4, worst


def test_alone_a_synced_norm_is_a_plain_one():
    import torch
    from torch import nn

    from vitrail.engine.processes import with_synced_norms

    x = torch.randn(4, 3, 5, 5)
    plain, synced = nn.BatchNorm2d(3), with_synced_norms(nn.BatchNorm2d(3), torch.device("cpu"))
    assert torch.equal(plain(x), synced(x))
    assert torch.equal(plain.running_var, synced.running_var)


# ---- mistakes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 3)):
        for name in "ab":
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    return tmp_path / "photos"


def train(photos, output, *options):
    command = ["-m", "vitrail", "train", "--data", "folder", "--data.root", str(photos), "--image_size", "32"]
    command += ["--model", "test_vit", "--batch_size", "8", "--epochs", "1", "--device", "cpu", "--output", str(output)]
    started = time.monotonic()
    done = subprocess.run([*TORCHRUN, *command, *options], **QUIET)
    said = [line for line in done.stderr.splitlines() if line.startswith("vitrail: ")]
    assert time.monotonic() - started < 120  # nobody waits for one that has failed
    return done, said


def test_what_all_meet_is_said_once(photos, tmp_path):
    done, said = train(photos, tmp_path / "run", "--lr", "1e30", "--optim.warmup_epochs", "0")
    assert done.returncode != 0
    assert len(said) == 1
    assert said[0].startswith("vitrail: The training diverged")
    assert "exitcode  : 2" in done.stderr
    assert "vitrail/src" not in done.stderr.replace("ChildFailedError", "")  # no traceback of ours


def test_what_one_meets_is_said_and_ends_all(photos, tmp_path):
    """The order of the images is known: one that only one of the processes reads is broken."""
    from vitrail.config.data import DataConfig
    from vitrail.config.train import TrainConfig
    from vitrail.tasks.classification import Classification

    config = TrainConfig(data=DataConfig("folder", root=str(photos)), model="test_vit", image_size=32, batch_size=8)
    batches = Classification(config).train_batches(1, 2)
    broken = batches.dataset.name(int(batches.order(0)[batches.slice_of(1)[0]]))
    with open(broken, "r+b") as file:
        file.truncate(60)
    done, said = train(photos, tmp_path / "run")
    assert len(said) == 1
    assert broken in said[0]
    assert done.stderr.count("Traceback") <= done.stderr.count("ChildFailedError")  # torchrun's own, if any
    assert not (tmp_path / "run" / ".vitrail-lock").exists()


def test_what_the_main_process_alone_looks_at_ends_all(photos, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: my own")
    _, said = train(photos, tmp_path / "run")
    assert [line for line in said if "which no run of vitrail wrote" in line] == said
    assert len(said) == 1
    assert (tmp_path / "run" / "config.yaml").read_text() == "name: my own"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="--device auto takes the accelerator")
def test_processes_share_a_run_without_a_device_named_and_stop_together(tmp_path):
    argv = ["-m", "vitrail", "train", "--model", "test_vit", "--epochs", "6", "--patience", "1", "--batch_size", "512"]
    still = ["--lr", "1e-12", "--optim.min_lr", "0", "--optim.warmup_epochs", "0"]  # no epoch is better than the first
    done = subprocess.run([*TORCHRUN, *argv, *still, "--output", str(tmp_path / "run")], **QUIET)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("stopped after epoch 2 of 6: none since epoch 1 was better (--patience 1)") == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["processes"], summary["epochs"], summary["stopped_early"]) == (2, 2, True)
