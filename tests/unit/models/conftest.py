"""Tiny models, built and loaded once for all tests."""

from __future__ import annotations

from functools import cache

import pytest

from tiny_backends import TinyBackend, TinyFolder, load_tiny
from tiny_models import build


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> TinyFolder:
    """The folder of a tiny model of a family."""
    root = tmp_path_factory.mktemp("tiny")
    return cache(lambda family: build(family, root / family))


@pytest.fixture(scope="session")
def tiny_backend(tiny_folder: TinyFolder) -> TinyBackend:
    """A tiny model, loaded. Tests share it: they must not close or change it."""
    return cache(lambda family: load_tiny(tiny_folder(family)))
