"""What stands around a ``ModelPool`` in tests: names that are all known, models made of nothing."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from pellucid.models.backend import Backend, ModelRef, Runtime
from pellucid.models.fake.backend import FakeBackend, FakeModel
from pellucid.models.sources.source import ModelSource, SourceSize
from pellucid.progress import ProgressListener, ignore_progress

DEFAULT = ModelRef(model_id="fake/default", revision="c0ffee")


@dataclass
class FakeLocator:
    """Knows every name; ``name@main`` and ``name`` are commit ``c0ffee``."""

    sizes: dict[str, int] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    located: list[str] = field(default_factory=list)
    downloads: dict[str, threading.Event] = field(default_factory=dict)  # come when it is set

    def resolve(self, ref: ModelRef | None = None) -> ModelRef:
        if ref is None:
            return DEFAULT
        revision = "c0ffee" if ref.revision in (None, "main") else ref.revision
        return ModelRef(model_id=ref.model_id, revision=revision)

    def locate(
        self, ref: ModelRef | None = None, *, progress: ProgressListener = ignore_progress
    ) -> ModelSource:
        key = self.resolve(ref)
        if key.model_id in self.errors:
            raise self.errors[key.model_id]
        self.located.append(key.model_id)
        if (download := self.downloads.get(key.model_id)) is not None:
            assert download.wait(10)
        assert key.revision is not None
        return ModelSource(
            folder=Path("nowhere"), model_id=key.model_id, revision=key.revision, origin="cache"
        )

    def estimate(self, ref: ModelRef | None = None) -> SourceSize:
        key = self.resolve(ref)
        size = self.sizes.get(key.model_id, 100)
        assert key.revision is not None
        return SourceSize(
            model_id=key.model_id,
            revision=key.revision,
            weights_bytes=size,
            download_bytes=size if key.model_id in self.downloads else 0,
            num_parameters=None,
            origin="cache",
        )


@dataclass
class FakeLoader:
    """Makes fake backends and watches that the budget is never exceeded by those alive."""

    budget_bytes: int = 1_000
    sizes: dict[str, int] = field(default_factory=dict)
    delay_s: float = 0.0
    gate: threading.Event | None = None
    error: Exception | None = None
    made: list[FakeBackend] = field(default_factory=list)
    over_budget: list[int] = field(default_factory=list)

    def __call__(self, source: ModelSource, runtime: Runtime = "torch") -> Backend:
        if self.gate is not None:
            self.gate.wait(10)
        time.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        model = FakeModel(
            model_id=source.model_id,
            revision=source.revision,
            memory_bytes=self.sizes.get(source.model_id, 100),
        )
        self.made.append(FakeBackend(model))
        if (alive := self.alive_bytes()) > self.budget_bytes:
            self.over_budget.append(alive)
        return self.made[-1]

    def alive_bytes(self) -> int:
        return sum(backend.model.memory_bytes for backend in self.made if not backend.closed)
