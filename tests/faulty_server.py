"""The real server on a model that misbehaves as told, while it runs, by a file.

    python tests/faulty_server.py FOLDER     what the tests start
    Faults(FOLDER).set(hangs=True)           what they say to it

Everything is real but the arithmetic of the model. What reaches a forward pass is written down, so
that tests can tell what did not.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from pellucid.models.backend import Batch, Float32, ModelInfo
from pellucid.models.fake.backend import FakeBackend, FakeModel

MODEL = FakeModel(
    model_id="fake/default",
    revision="c0ffee",
    hidden_size=24,
    vocab_size=30_000,
    max_tokens=None,
    max_embedding_tokens=512,
)
_POLL_S = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """How the model misbehaves; the default is not at all."""

    raises: str | None = None  # name of a builtin exception, raised by every forward pass
    nan: str | None = None  # "always", or "unless_exact"
    hangs: bool = False  # until it is switched off
    dies: bool = False  # the thread that has run it ends when it comes again
    delay_s: float = 0.0  # of each forward pass
    max_tokens: int | None = None  # MemoryError where longest x count is above
    only_with: str | None = None  # the above only for inputs that hold this word
    load_fails: bool = False
    load_s: float = 0.0


class Faults:
    """The switch, and the record of forward passes; for the test and the server alike."""

    def __init__(self, folder: Path) -> None:
        self._switch = folder / "fault.json"
        self._record = folder / "forwards"

    def set(self, **fault: object) -> None:
        """From the next call of the model on; what is not named is switched off."""
        self._replace(replace(Fault(), **fault))  # type: ignore[arg-type]

    def clear(self) -> None:
        self._replace(Fault())

    def now(self) -> Fault:
        try:
            return Fault(**json.loads(self._switch.read_bytes()))
        except FileNotFoundError:
            return Fault()

    def note(self, batch: Batch) -> None:
        rows = zip(batch.input_ids, batch.attention_mask, strict=True)
        ids = [row[mask == 1].tolist() for row, mask in rows]
        with self._record.open("a") as record:
            record.write(json.dumps(ids) + "\n")

    def batches(self) -> list[list[tuple[int, ...]]]:
        """Token ids of every input of every forward pass so far."""
        if not self._record.exists():
            return []
        lines = self._record.read_text().splitlines()
        return [[tuple(ids) for ids in json.loads(line)] for line in lines]

    def forget(self) -> None:
        self._record.unlink(missing_ok=True)

    def _replace(self, fault: Fault) -> None:
        aside = self._switch.with_suffix(".new")
        aside.write_text(json.dumps(asdict(fault)))
        os.replace(aside, self._switch)


@cache
def healthy() -> FakeBackend:
    """The same model without faults; its weights come from a seed."""
    return FakeBackend(MODEL)


def ids_of(text: str) -> tuple[int, ...]:
    """What the model reads of a text."""
    (given,) = healthy().tokenize_for_embedding([text])
    return tuple(given.input_ids.tolist())


def embeddings_of(texts: Sequence[str]) -> Float32:
    """What a healthy model answers, each text by itself: [n, hidden_size], of length 1."""
    backend = healthy()
    inputs = backend.tokenize_for_embedding(texts)
    rows = [backend.encode(Batch.of([given], pad_id=backend.pad_id)) for given in inputs]
    vectors = np.concatenate(rows)
    unit: Float32 = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


class FaultyBackend(FakeBackend):
    """A ``FakeBackend`` that looks at the switch before every forward pass."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(MODEL)
        self._file = faults
        self._dying: int | None = None  # a thread

    @property
    def info(self) -> ModelInfo:
        if threading.get_ident() == self._dying and self._file.now().dies:
            raise SystemExit
        return super().info

    def encode(self, batch: Batch, *, exact: bool = False) -> Float32:
        fault = self._file.now()
        self._file.note(batch)
        hit = _rows_with(fault.only_with, batch)
        if fault.dies:
            self._dying = threading.get_ident()
        if hit.any():
            self._misbehave(fault, batch)
        vectors = super().encode(batch, exact=exact)
        if fault.nan == "always" or (fault.nan == "unless_exact" and not exact):
            vectors[hit] = np.nan
        return vectors

    def _misbehave(self, fault: Fault, batch: Batch) -> None:
        while self._file.now().hangs:
            time.sleep(_POLL_S)
        time.sleep(fault.delay_s)
        if fault.raises is not None:
            raise _exception(fault.raises)
        if fault.max_tokens is not None and batch.input_ids.size > fault.max_tokens:
            raise MemoryError


def _rows_with(word: str | None, batch: Batch) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    if word is None:
        return np.ones(len(batch.input_ids), dtype=bool)
    token_id = ids_of(word)[1]  # after [CLS]
    return np.asarray((batch.input_ids == token_id).any(axis=1))


def _exception(name: str) -> BaseException:
    import builtins

    error: BaseException = getattr(builtins, name)("told to")
    return error


def main() -> None:
    """Like ``pellucid serve``, with another model."""
    from fake_pool import FakeLocator
    from pellucid import listening
    from pellucid.cli.announcement import announcement_on
    from pellucid.cli.server import run_server
    from pellucid.inference import composition
    from pellucid.models.sources.locator import Locator
    from pellucid.settings import Settings
    from pellucid.stdout import reserve_stdout

    announcement = announcement_on(reserve_stdout())
    settings = Settings()
    faults = Faults(Path(sys.argv[1]))

    def load(*_: object) -> FaultyBackend:
        time.sleep(faults.now().load_s)
        if faults.now().load_fails:
            raise OSError("told to")
        return FaultyBackend(faults)

    composition._loader = lambda *_: load  # type: ignore[assignment]
    composition._converter = lambda *_: lambda *_: None  # type: ignore[assignment]
    Locator.of = lambda _: FakeLocator()  # type: ignore[assignment,method-assign,misc]
    run_server(settings, listening.bind(settings.host, settings.port), announcement)


if __name__ == "__main__":
    main()
