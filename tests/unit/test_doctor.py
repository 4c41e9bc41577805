from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from conftest import plain_settings
from pellucid import doctor
from pellucid.doctor import Finding
from pellucid.listening import bind
from pellucid.models.graph.compiled import fastest_precision
from pellucid.models.sources import default_encoder


def levels(findings: list[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def test_this_interpreter_is_supported() -> None:
    assert levels(list(doctor.check_interpreter(plain_settings()))) == ["ok"]


def test_an_old_interpreter_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (3, 9, 1))
    (finding,) = doctor.check_interpreter(plain_settings())
    assert finding.level == "error"
    assert "3.9.1" in finding.detail
    assert "make install PYTHON=" in finding.remedy


@pytest.mark.parametrize(
    ("requirement", "said"),
    [
        ("no-such-package>=1", "is not installed"),
        ("numpy>=999", ">=999 is needed"),
        ("rich", None),
        ('no-such-package>=1; python_version < "3"', None),
        ('no-such-package>=1; extra == "other"', None),
    ],
)
def test_what_is_declared_must_be_there(
    monkeypatch: pytest.MonkeyPatch, requirement: str, said: str | None
) -> None:
    declared = ["torch", "transformers", requirement]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: declared)
    monkeypatch.setattr(doctor.importlib, "import_module", lambda name: None)
    (finding,) = doctor.check_packages(plain_settings())
    assert finding.level == ("error" if said else "ok")
    if said:
        assert said in finding.detail
        assert "pip install" in finding.remedy


def test_a_package_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError("libfoo.so: cannot open shared object file")

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["rich"])
    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    (finding,) = doctor.check_packages(plain_settings())
    assert finding.level == "error"
    assert "libfoo.so" in finding.detail


@pytest.mark.parametrize(
    ("precision", "said"),
    [("float32", "embeds in float32"), ("auto", f"embeds in {fastest_precision()}")],
)
def test_what_embeds_is_told_with_its_version_and_precision(precision: str, said: str) -> None:
    settings = plain_settings(device="cpu", embedding_precision=precision)
    (finding,) = doctor.check_embeddings(settings)
    assert finding.level == "ok"
    assert f"OpenVINO {importlib.metadata.version('openvino')} {said}" in finding.detail


@pytest.mark.parametrize(("quantization", "level"), [("int8", "error"), ("none", "ok")])
def test_int8_without_what_makes_it(
    monkeypatch: pytest.MonkeyPatch, quantization: str, level: str
) -> None:
    version = importlib.metadata.version

    def without_nncf(name: str) -> str:
        if name == "nncf":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_nncf)
    settings = plain_settings(device="cpu", quantization=quantization)
    (finding,) = doctor.check_embeddings(settings)
    assert finding.level == level
    assert "nncf, which is not installed" in finding.detail
    assert ("pip install nncf" in finding.remedy) == (level == "error")


@pytest.mark.parametrize(("quantization", "level"), [("int8", "warning"), ("none", "ok")])
def test_pytorch_knows_no_int8(quantization: str, level: str) -> None:
    settings = plain_settings(embedding_runtime="torch", quantization=quantization)
    (finding,) = doctor.check_embeddings(settings)
    assert finding.level == level
    assert finding.detail.startswith("PyTorch embeds")


@pytest.mark.parametrize(("asked", "level"), [("openvino", "error"), ("auto", "warning")])
def test_an_openvino_that_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch, asked: str, level: str
) -> None:
    monkeypatch.setitem(sys.modules, "pellucid.models.graph.compiled", None)
    settings = plain_settings(device="cpu", embedding_runtime=asked)
    (finding,) = doctor.check_embeddings(settings)
    assert finding.level == level
    assert "OpenVINO cannot be used" in finding.detail


def test_folders_that_can_be_made_are_fine_and_leave_no_trace(tmp_path: Path) -> None:
    settings = plain_settings(data_dir=tmp_path / "a" / "b", hub_cache_dir=tmp_path / "c" / "d")
    findings = list(doctor.check_folders(settings))
    assert levels(findings) == ["ok", "ok"]
    assert all("made when needed" in finding.detail for finding in findings)
    assert not list(tmp_path.iterdir())


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = plain_settings(data_dir=tmp_path / "file" / "x", hub_cache_dir=tmp_path)
    data, cache = doctor.check_folders(settings)
    assert data.level == "error"
    assert "PELLUCID_DATA_DIR" in data.remedy
    assert cache.level == "ok"


def test_a_full_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    findings = doctor.check_folders(plain_settings(data_dir=tmp_path, hub_cache_dir=tmp_path))
    assert levels(list(findings)) == ["warning", "warning"]


def test_a_taken_port_names_its_holder_and_the_way_out() -> None:
    with bind("127.0.0.1", 0) as listener:
        (finding,) = doctor.check_port(plain_settings(port=listener.getsockname()[1]))
    assert finding.level == "error"
    assert "process" in finding.detail
    assert "--port" in finding.detail


def test_the_default_model_is_checked() -> None:
    (finding,) = doctor.check_default_model(plain_settings())
    assert finding.level == "ok"
    assert "sha-256 as published" in finding.detail


def test_a_default_model_that_was_changed_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in default_encoder.SHA256:
        (folder / name).write_bytes(b"something else")
    monkeypatch.setattr(default_encoder, "_installed_folder", lambda: folder)
    (finding,) = doctor.check_default_model(plain_settings())
    assert finding.level == "error"
    assert "sha-256" in finding.detail
    assert "pip install --force-reinstall" in finding.remedy


def test_a_model_of_one_s_own_that_is_not_there(tmp_path: Path) -> None:
    settings = plain_settings(model="owner/missing", offline=True, hub_cache_dir=tmp_path)
    shipped, own = doctor.check_default_model(settings)
    assert shipped.level == "ok"
    assert own.level == "error"
    assert own.detail.startswith("model_offline")
