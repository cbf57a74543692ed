"""Heads that turn a backbone's feature maps into boxes, masks, keypoints, classes of pixels or embeddings: one a file.

`vitrail.factory.assemble` builds one on any backbone by name.
"""

from .bnneck import BNNeck
from .mask_rcnn import MaskRCNN
from .panoptic_fpn import PanopticFPN
from .retinanet import RetinaNet
from .segformer import SegFormerHead
from .semantic_fpn import SemanticFPN
from .simple_baseline import SimpleBaseline
from .sparse_rcnn import SparseRCNN
from .ssdlite import SSDLite
from .upernet import UperNet

__all__ = [
    "BNNeck",
    "MaskRCNN",
    "PanopticFPN",
    "RetinaNet",
    "SSDLite",
    "SegFormerHead",
    "SemanticFPN",
    "SimpleBaseline",
    "SparseRCNN",
    "UperNet",
]
