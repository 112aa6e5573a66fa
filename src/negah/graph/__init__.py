"""Aggregate a set without order: graph layers, and an auditor of update functions."""
