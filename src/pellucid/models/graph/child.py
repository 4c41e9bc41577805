"""Has a model converted by a process of its own: that one needs torch, and may crash or be killed
without harm to this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from pellucid.errors import GraphUnavailable
from pellucid.models.backend import Quantization
from pellucid.models.sources.source import ModelSource

TIMEOUT_S = 1_800.0  # int8 of a large model takes minutes on a small machine
_STDERR_CHARACTERS = 300

# What a Python process with these libraries needs of its surroundings. Nothing else is passed on:
# tokens and passwords stand there too.
_PASSED_ON = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV"),
        *("TEMP", "TMP", "SYSTEMROOT", "USERNAME", "USERPROFILE", "LOCALAPPDATA"),
        *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "XDG_CACHE_HOME", "HF_HOME", "HF_MODULES_CACHE"),
        *("PYTHONPATH", "PYTHONHOME", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY"),
    }
)
# -P: the folder that the server was started in is no place to import from
_COMMAND = (sys.executable, "-P", "-m", "pellucid.models.graph")
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def convert_in_child(
    source: ModelSource,
    folder: Path,
    *,
    quantization: Quantization,
    trust_remote_code: bool,
    num_threads: int | None,
    timeout_s: float = TIMEOUT_S,
) -> str | None:
    """Fill and seal ``folder``; or say why the installed versions can never convert this model.

    Raises GraphUnavailable for what may go well the next time, OSError.
    """
    request = {
        "source": {**asdict(source), "folder": str(source.folder)},
        "folder": str(folder),
        "quantization": quantization,
        "trust_remote_code": trust_remote_code,
        "num_threads": num_threads,
    }
    read_end, write_end = os.pipe()
    try:
        with subprocess.Popen(
            _COMMAND,
            stdin=read_end,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ} | _OFFLINE,
        ) as process:
            try:
                os.write(write_end, json.dumps(request).encode() + b"\n")
                stdout, stderr = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                raise _unavailable(source, f"its conversion took over {timeout_s:.0f} s") from None
            finally:
                process.kill()
    finally:
        os.close(read_end)
        os.close(write_end)
    if process.returncode != 0 or not stdout:
        said = stderr.decode(errors="replace").strip()[-_STDERR_CHARACTERS:]
        ended = f"the converting process ended with status {process.returncode}"
        raise _unavailable(source, f"{ended} ({said.rstrip('.')})" if said else ended)
    outcome = json.loads(stdout)
    if "failed" in outcome:
        raise _unavailable(source, outcome["failed"].rstrip("."))
    refusal: str | None = outcome.get("refused")
    return refusal


def _unavailable(source: ModelSource, reason: str) -> GraphUnavailable:
    return GraphUnavailable(model_id=source.model_id, reason=reason)
