"""Embedding models as OpenVINO graphs: converted once, kept on disk, checked at every load."""
