"""Plain-value settings of `vitrail export`; importing them is cheap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..utils.plain import from_dict, limited, to_dict
from .data import MAX_SIDE

Format = Literal["onnx", "openvino", "executorch", "torch_export"]
#: what runs a network: "auto" = PyTorch, or the runtime of an exported file's format
RuntimeName = Literal["auto", "torch", "onnxruntime", "openvino", "executorch"]
Dynamic = Literal["none", "batch", "batch,size"]
Quantize = Literal["int8"]


@dataclass
class ExportOptions:
    """Options of `vitrail export`.

    Attributes:
        format: format of the file.
        output: path of the file; its metadata are written to FILE.json, OpenVINO's weights to FILE.bin.
        model: the network a file of tensors (authors', timm's, torchvision's) belongs to.
        dynamic: free axes; None = the batch, and of networks that see images at many sizes (segmentation, detection,
            features) also the size, if the network and the format allow it.
        image_size: height and width in pixels, one number or two; None = those of the weights.
        batch_size: fixed number of images in a batch.
        features: export the features of the stages instead of the output.
        end_to_end: put decoding and suppression of a detector into the file, which then gives the boxes, scores and
            labels of one image (retinanet, ssdlite, sparse_rcnn; onnx).
        embed_preprocessing: put scaling and normalisation into the graph; its input is then RGB values 0..255.
        quantize: post-training quantisation; None = float.
        calibration_images: number of training images for the int8 ranges.
        max_drop: largest loss by int8 of top-1, or of the main metric of a network with a head, in percentage points.
        max_slowdown: longest time of an image by int8, relative to float; the float file is kept if int8 takes longer.
            Both are timed in turn for two seconds, on this processor with `threads`.
        tolerance: largest allowed difference to PyTorch, relative to the largest output.
        threads: number of threads of PyTorch and of the runtime in the comparison.
        overwrite: replace an existing file.
    """

    format: Format
    output: str
    model: str | None = None
    dynamic: Dynamic | None = None
    image_size: int | tuple[int, int] | None = limited(None, least=1, most=MAX_SIDE)
    batch_size: int | None = limited(None, above=0, most=65_536)
    features: bool = False
    end_to_end: bool = False
    embed_preprocessing: bool = False
    quantize: Quantize | None = None
    calibration_images: int = limited(64, above=0)
    max_drop: float = 2.0
    max_slowdown: float = limited(1.05, above=0)
    tolerance: float = limited(1e-4, above=0)
    threads: int = limited(1, above=0, most=1024)
    overwrite: bool = False

    def check(self) -> None:
        """Raise `UserError` for a value of the wrong type or outside what is allowed."""
        from_dict(ExportOptions, to_dict(self), "--")
