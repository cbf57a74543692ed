"""Setup of a training run: task, batches, network, optimiser and schedule, on the devices of its processes."""

from __future__ import annotations

from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from ..checkpoint.description import WeightsMeta, check_class_names
from ..checkpoint.run_dir import RunDirectory
from ..config.data import TRAINING_IMAGES
from ..config.train import TrainConfig
from ..tasks import Batches, Task, build_task
from ..tasks.micro_batches import training_mode
from ..tasks.teacher import kept, training_only
from .compiled import compiled
from .launch import seed_everything
from .optim import build_optimizer, build_schedule, run_steps
from .processes import call_in_all_processes, with_synced_norms


class Setup:
    """What a run trains, and with what; `Trainer` adds the loop.

    Args:
        config: the recipe.
        run: directory of the run.
        accelerator: Accelerate's object.

    Attributes:
        task: the task, with its data opened.
        batches: this process's share of the training batches.
        model: what is trained (`Task.trained`), as prepared for devices and processes.
        step_model: what a training step calls: `model`, or its compiled form.
        ema: running average of the weights; None without `ema_decay`.
        optimizer: timm's, as prepared by Accelerate.
        schedule: of the learning rate.
        note: what was taken over from the weights of `init`.
        licence: of these weights.

    Raises:
        UserError: the directory must not be used (see `RunDirectory.check`), or values, data or weights are wrong.
    """

    def __init__(self, config: TrainConfig, run: RunDirectory, accelerator: Any):
        self.config, self.run, self.accelerator = config, run, accelerator
        self.is_main: bool = accelerator.is_main_process
        self.note = ""
        self.licence: str | None = None

        call_in_all_processes(accelerator, lambda: run.check(config) if self.is_main else None)
        seed_everything(config.seed)
        self.task, self.batches, network = call_in_all_processes(accelerator, self._build)
        if config.freeze == "backbone":
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(self.task.is_head(name, network))
        trained = self.task.trained(network)  # perhaps with layers that are not kept
        optimizer = build_optimizer(
            network, config, lambda name: self.task.is_head(name, network), training_only(trained)
        )
        if config.batch_norm in ("auto", "sync") and accelerator.num_processes > 1:
            trained = with_synced_norms(trained, accelerator.device)
        trained = trained.to(accelerator.device)
        trained = trained.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.ema = (
            ModelEmaV3(kept(trained), decay=config.ema_decay, use_warmup=config.ema_warmup)
            if config.ema_decay is not None
            else None
        )
        self.model, self.optimizer = accelerator.prepare(trained, optimizer)
        self.step_model: nn.Module = compiled(self.model) if config.compile else self.model
        self.schedule = build_schedule(self.optimizer, config, len(self.batches))

    def _build(self) -> tuple[Task, Batches, nn.Module]:
        """Task, training batches and network, initialised from the weights of `init` unless a saved state follows."""
        config, accelerator = self.config, self.accelerator
        task = build_task(config)
        check_class_names(task.classes)
        batches = task.train_batches(accelerator.process_index, accelerator.num_processes)
        network = task.build_model()
        resumes = config.resume and self.run.state() is not None
        if config.init and not resumes:
            report = task.init(network, config.init)
            sentences = [report.summary(), report.normalisation_note(task.preprocess)]
            self.note, self.licence = " ".join(filter(None, sentences)), report.licence
        return task, batches, network

    @property
    def network(self) -> nn.Module:
        """The network itself, without the wrappers of devices and processes, and without layers that are not kept."""
        return kept(self.accelerator.unwrap_model(self.model))

    @property
    def eval_network(self) -> nn.Module:
        """The network that is validated and kept: the running average of the weights when there is one."""
        return self.network if self.ema is None else self.ema.module

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        total = run_steps(self.config, len(self.batches))
        return min(total, self.config.max_steps or total)

    @property
    def total_epochs(self) -> int:
        """Epochs of the whole run; the last one may end early."""
        return -(-run_steps(self.config, len(self.batches)) // len(self.batches))

    @property
    def lr(self) -> float:
        """Learning rate of the next step; of several parameter groups the largest."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    @property
    def arithmetic(self) -> str:
        """Precision of the training steps, and whether they are compiled, in words."""
        config = self.config
        precision = f"{config.precision} with TF32" if config.tf32 else config.precision
        return f"{precision}, compiled (the first step takes minutes)" if config.compile else precision

    @property
    def eval_label(self) -> str:
        """Name of the validation split in lines and curves."""
        return TRAINING_IMAGES if self.task.measures_training else "val"

    def set_train_mode(self) -> None:
        """Set training mode, except for frozen modules (see `training_mode`)."""
        self.model.train()
        training_mode(self.network, self.config, lambda name: self.task.is_head(name, self.network))

    def is_finite(self) -> bool:
        """True if the network's weights, and their running average, are free of NaN and infinity."""
        return all_finite(self.network) and all_finite(self.eval_network)

    def weights_meta(self, values: dict[str, Any]) -> WeightsMeta:
        """The description stored with the weights.

        Args:
            values: their metrics.
        """
        config, task = self.config, self.task
        return WeightsMeta(
            model=config.model,
            model_options=task.model_options,
            head=task.head,
            head_options=task.head_options,
            settings=task.settings,
            task=task.name,
            classes=list(task.classes),
            preprocess=task.preprocess,
            licence=self.licence,
            training_data=task.training_data,
            metrics={name: value for name, value in values.items() if isinstance(value, (int, float))},
            note=self.note,
        )


def all_finite(model: nn.Module) -> bool:
    """True if every floating-point parameter and buffer is free of NaN and infinity."""
    tensors = [t.detach() for t in (*model.parameters(), *model.buffers()) if t.is_floating_point() and t.numel()]
    return all(bool(torch.isfinite(norm)) for norm in torch._foreach_norm(tensors, float("inf")))
