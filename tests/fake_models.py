"""A ``LocalEngine`` whose models are fakes: everything is real but the arithmetic."""

from __future__ import annotations

from pathlib import Path

from pellucid.errors import ModelNotFound
from pellucid.inference.local_engine import LocalEngine
from pellucid.models.backend import ModelRef
from pellucid.models.fake.backend import FakeBackend, FakeModel
from pellucid.models.pool import ModelPool, PoolLimits
from pellucid.models.sources.source import ModelSource, SourceSize
from pellucid.progress import ProgressListener, ignore_progress
from pellucid.settings import Settings

FAKE_MODELS = {
    "fake/encoder": FakeModel(model_id="fake/encoder", kind="encoder"),
    "fake/decoder": FakeModel(model_id="fake/decoder", kind="decoder"),
    "fake/translator": FakeModel(model_id="fake/translator", kind="encoder-decoder"),
}
_REVISION = "0" * 40
_BYTES = 1_000


class FakeLocator:
    """Implements ``ModelLocator``: the fake models by their names, everything else is not found."""

    def resolve(self, ref: ModelRef | None = None) -> ModelRef:
        model_id = "fake/encoder" if ref is None else ref.model_id
        revision = None if ref is None else ref.revision
        if model_id not in FAKE_MODELS or revision not in (None, "main", _REVISION):
            raise ModelNotFound(model_id=model_id, revision=revision or "main")
        return ModelRef(model_id=model_id, revision=_REVISION)

    def locate(
        self, ref: ModelRef | None = None, *, progress: ProgressListener = ignore_progress
    ) -> ModelSource:
        return ModelSource(
            folder=Path("/none"),
            model_id=self.resolve(ref).model_id,
            revision=_REVISION,
            origin="cache",
        )

    def estimate(self, ref: ModelRef | None = None) -> SourceSize:
        return SourceSize(
            model_id=self.resolve(ref).model_id,
            revision=_REVISION,
            weights_bytes=_BYTES,
            download_bytes=0,
            num_parameters=_BYTES // 4,
            origin="cache",
        )


def fake_engine(settings: Settings) -> LocalEngine:
    """An engine with three small models, ``FAKE_MODELS``; the encoder is the default."""
    pool = ModelPool(
        FakeLocator(),
        lambda source, runtime: FakeBackend(FAKE_MODELS[source.model_id]),
        limits=PoolLimits(memory_budget=lambda: 1_000_000_000),
    )
    return LocalEngine(pool, settings)
