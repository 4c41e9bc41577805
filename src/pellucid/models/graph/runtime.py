"""OpenVINO, imported so that it reports nothing home. Everybody here imports it from here."""

from __future__ import annotations

import sys

# None in place of the module: OpenVINO's tools take it for not installed.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402  only now

__all__ = ["ov"]
