"""Experiments that answer questions about methods by measuring them: each trains small networks and writes a page."""
