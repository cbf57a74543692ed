"""A network as a folder in the Hub's form: weights, config.json and model card; and such a folder on the Hub.

A classifier's folder is read by timm and Transformers, too, after `import vitrail`; others only by vitrail.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import yaml
from timm.models._hub import save_config_for_hf
from torch import nn

from ..errors import UserError
from ..utils.output_folder import OutputFolder
from ..utils.plain import to_dict
from .description import WeightsMeta
from .format import HUB_CONFIG, HUB_WEIGHTS, meta_of, save_weights
from .sources import CARD, HUB

#: the Hub's name of each task
PIPELINES = {
    "classification": "image-classification",
    "detection": "object-detection",
    "instance_segmentation": "image-segmentation",
    "semantic_segmentation": "image-segmentation",
    "panoptic_segmentation": "image-segmentation",
    "keypoints": "keypoint-detection",
    "reid": "image-feature-extraction",
}
#: licences that the Hub knows by these names; others are written out in the card
KNOWN_LICENCES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0"),
    *("cc-by-nc-sa-4.0", "gpl-3.0", "agpl-3.0", "openrail"),
)
#: classes that a card lists by name
LISTED = 50


def write_hub_folder(network: nn.Module, folder: str | Path) -> Path:
    """Write weights, config.json and model card of a network with a description; only files of an earlier call are
    replaced.

    Raises:
        UserError: an exported file, which has no weights to store, or a file in the folder that must not be replaced.
    """
    if next(network.parameters(), None) is None:
        raise UserError("An exported file has no weights that could be stored: load the weights it was exported from.")
    meta = meta_of(network)
    output = OutputFolder(Path(folder), "folder")
    output.check((HUB_WEIGHTS[0], HUB_CONFIG, CARD))
    with output.adding() as fresh:
        _write_files(network, meta, fresh, Path(folder).name)
    return Path(folder)


def push_to_hub(network: nn.Module, repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a network's folder to a repository of the Hub, which is made if there is none; returns its address.

    A model card that is there already is kept.

    Args:
        network: with its description.
        repo: "org/name", or "name" for the user's own.
        private: of a repository that is made.
        token: of the user; None = the one that `hf auth login` stored.

    Raises:
        UserError: an exported file, or what the Hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        made = write_hub_folder(network, Path(folder) / "model")
        try:
            url = api.create_repo(repo, private=private, exist_ok=True)
            repo = str(url.repo_id)
            _write_card(network, made, repo)
            left_out = [".vitrail-*", *([CARD] if api.file_exists(repo, CARD) else [])]
            api.upload_folder(
                repo_id=repo,
                folder_path=str(made),
                commit_message=f"Weights of {meta_of(network).model}, written by vitrail",
                ignore_patterns=left_out,
            )
        except Exception as error:  # the client has a dozen kinds: no token, no permission, no network
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"The Hub did not take {repo}: {reason} (`hf auth login` stores a token).") from error
    return str(url)


def _write_files(network: nn.Module, meta: WeightsMeta, folder: Path, name: str) -> None:
    save_weights(folder / HUB_WEIGHTS[0], network.state_dict(), meta)
    (folder / HUB_CONFIG).write_text(json.dumps(hub_config(network, meta), indent=2), encoding="utf-8")
    (folder / CARD).write_text(model_card(network, meta, name), encoding="utf-8")


def _write_card(network: nn.Module, folder: Path, repo: str) -> None:
    (folder / CARD).write_text(model_card(network, meta_of(network), repo), encoding="utf-8")


def hub_config(network: nn.Module, meta: WeightsMeta) -> dict[str, Any]:
    """The config.json: timm's of a classifier, else the description of the network."""
    if meta.head is not None:
        return {"library_name": "vitrail", "task": meta.task, "vitrail": to_dict(meta)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / HUB_CONFIG
        save_config_for_hf(
            network, str(file), model_config={"label_names": list(meta.classes)}, model_args=dict(meta.model_options)
        )
        config = json.loads(file.read_text(encoding="utf-8"))
    # Transformers gives the number of classes itself, and refuses it a second time
    config.get("model_args", {}).pop("num_classes", None)
    return config


# ---- the model card ------------------------------------------------------------------------------------------------


def model_card(network: nn.Module, meta: WeightsMeta, name: str) -> str:
    """The README.md: data, metrics, licence, intended use and how to run it, as far as the description says them.

    Args:
        network: for its size.
        meta: its description.
        name: of the repository or folder.
    """
    params = sum(parameter.numel() for parameter in network.parameters())
    licence = (meta.licence or "").lower()
    known = licence if licence in KNOWN_LICENCES else "other"
    front = {
        "license": known,
        **({} if known != "other" else {"license_name": "see-below"}),
        "library_name": "timm" if meta.head is None else "vitrail",
        "pipeline_tag": PIPELINES[meta.task],
        "tags": [*(["timm"] if meta.head is None else []), "vitrail", meta.model.partition(".")[0]],
    }
    head = f" under {meta.head}" if meta.head else ""
    height, width = meta.preprocess.image_size
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {name}\n\n{meta.model}{head} for {meta.task.replace('_', ' ')}: {params:,} parameters, images of "
        f"{height}x{width} pixels, {len(meta.classes):,} classes.",
        f"## Data\n\n{_data(meta)}\n\n{_classes(meta)}",
        f"## Metrics\n\n{_metrics(meta)}",
        f"## Licence\n\n{meta.licence or 'Not stated: ask who trained these weights before you use them.'}",
        f"## Intended use\n\n{_intended_use(meta)}",
        f"## How to run\n\n{_how_to_run(meta, name)}",
    ]
    return "\n\n".join(sections) + "\n"


def _data(meta: WeightsMeta) -> str:
    started = f" {meta.note.rstrip('.')}." if meta.note else ""
    return f"Trained on {meta.training_data or 'data that is not stated'}.{started}"


def _classes(meta: WeightsMeta) -> str:
    listed = ", ".join(meta.classes[:LISTED])
    more = len(meta.classes) - LISTED
    return f"Classes: {listed}{f' and {more:,} more, in {HUB_CONFIG}' if more > 0 else ''}."


def _metrics(meta: WeightsMeta) -> str:
    """The metrics of training's end as a table."""
    rows = [f"| {name} | {value:.4g} |" for name, value in meta.metrics.items() if isinstance(value, (int, float))]
    if not rows:
        return "None were measured."
    return "\n".join(
        [
            "Of the validation images in training, by which the best epoch was chosen; of other images they are lower.",
            "",
            "| metric | value |",
            "|---|---|",
            *rows,
        ]
    )


def _intended_use(meta: WeightsMeta) -> str:
    what = {
        "classification": "says which of its classes an image shows, and always names one of them, whatever it shows",
        "reid": "gives vectors by which images of the same object can be found",
        "keypoints": "finds the keypoints of persons in their boxes",
    }.get(meta.task, "finds its classes in images, and nothing else")
    return (
        f"The network {what}. It was measured on images like those it was trained on: measure it on your own before "
        "you rely on it. It is not meant for decisions about people without a person who answers for them."
    )


def _how_to_run(meta: WeightsMeta, name: str) -> str:
    source = f"{HUB}{name}" if "/" in name else name
    command = f"```sh\nvitrail predict {source} photo.jpg\n```"
    python = f'```python\nimport vitrail\n\nprint(vitrail.load("{source}").predict("photo.jpg").summary())\n```'
    if meta.head is not None:
        return f"{command}\n\n{python}"
    place = source if "/" in name else f"local-dir:{name}"
    timm = (
        "```python\nimport timm\nimport vitrail  # registers the network\n\n"
        f'model = timm.create_model("{place}", pretrained=True).eval()\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n```"
    )
    return f"{command}\n\n{python}\n\nWith timm:\n\n{timm}"
