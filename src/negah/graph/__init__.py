"""Neighbours without order: layers of message passing on plain tensors, graphs to run them on, an auditor of them."""

from negah.graph.csr import CSR
from negah.graph.edges import Edges
from negah.graph.layers import GAT, GCN, GIN, SAGE, Update

__all__ = ["CSR", "GAT", "GCN", "GIN", "SAGE", "Edges", "Update"]
