"""Learning without labels: SimCLR, MoCo, BYOL, DINO and DINOv2, a file each, as objectives of `negah.train.fit`."""

from negah.ssl.byol import BYOL
from negah.ssl.dino import DINO
from negah.ssl.dinov2 import DINOv2
from negah.ssl.moco import MoCo, MoCoV3
from negah.ssl.simclr import SimCLR

__all__ = ["BYOL", "DINO", "DINOv2", "MoCo", "MoCoV3", "SimCLR"]
