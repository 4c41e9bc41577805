"""The process that converts one model: a JSON request on stdin, its outcome as JSON on stdout.

It ends as soon as stdin is closed, so that it never outlives its parent.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from pellucid.errors import CapabilityMissing, GraphUnavailable, PellucidError
from pellucid.models.sources.source import ModelSource


def main() -> int:
    outcome_fd = os.dup(1)
    os.dup2(2, 1)  # whatever the libraries print is for the log
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    outcome = outcome_of(request)
    os.write(outcome_fd, json.dumps(outcome).encode())
    return 0


def outcome_of(request: dict[str, Any]) -> dict[str, Any]:
    """``refused``: these versions can never convert this model; ``failed``: not this time."""
    from pellucid.models.graph.conversion import ConversionRequest, convert

    source = request["source"]
    try:
        convert(
            ConversionRequest(
                source=ModelSource(**{**source, "folder": Path(source["folder"])}),
                folder=Path(request["folder"]),
                quantization=request["quantization"],
                trust_remote_code=request["trust_remote_code"],
                num_threads=request["num_threads"],
            )
        )
    except (GraphUnavailable, CapabilityMissing) as error:
        return {"refused": error.facts["reason"]}
    except PellucidError as error:
        return {"failed": error.detail}
    except (OSError, MemoryError) as error:
        return {"failed": str(error) or type(error).__name__}
    return {"done": True}


def _end_with_the_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
