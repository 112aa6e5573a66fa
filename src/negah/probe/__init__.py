"""Frozen features to answers: the attentive head, and the simpler probes that it is compared with."""

from negah.probe.attentive import AttentiveHead, Reading
from negah.probe.detector import Detector, DetectorInfo, load, save

__all__ = ["AttentiveHead", "Detector", "DetectorInfo", "Reading", "load", "save"]
