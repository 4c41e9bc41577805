"""One forward pass of one request, keeping what was asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pellucid.errors import (
    CapabilityMissing,
    LayerOutOfRange,
    LogitLensUnavailable,
    NonFiniteValues,
    TargetRequired,
)
from pellucid.models.attention.capture import AttentionCapture, deliver
from pellucid.models.attention.capture_plan import CapturePlan, CapturePlanner
from pellucid.models.attention.function import observing
from pellucid.models.backend import (
    AttentionSink,
    Batch,
    CaptureSpec,
    Float32,
    HiddenStatesName,
    LogitLens,
    ModelOutputs,
)
from pellucid.models.capabilities import Capabilities
from pellucid.models.embedding.text_encoder import LastHiddenState
from pellucid.models.loading import LoadedTransformer
from pellucid.models.model_inputs import ModelInputs

Pool = Callable[[Tensor, Batch], Tensor]
"""(last hidden state of the text encoder, batch) -> [batch, dimensions]."""


class Inspector:
    """Runs a model with the capture armed for this one pass."""

    def __init__(
        self, loaded: LoadedTransformer, capabilities: Capabilities, *, model_id: str
    ) -> None:
        self._model_id = model_id
        self._loaded = loaded
        self._model = loaded.model
        self._kind = loaded.kind
        self._inputs = ModelInputs(loaded.model, device=loaded.device)
        self._capabilities = capabilities
        self._planner = CapturePlanner(
            model_id=model_id,
            config=loaded.config,
            num_layers=capabilities.num_layers,
            attention=capabilities.attention,
            projections=capabilities.projections,
        )

    def inspect(
        self,
        batch: Batch,
        spec: CaptureSpec,
        *,
        sink: AttentionSink | None = None,
        pool: Pool | None = None,
    ) -> ModelOutputs:
        """See ``Backend.inspect``; ``pool`` is needed for ``spec.pooled``."""
        if self._kind == "encoder-decoder" and batch.decoder_input_ids is None:
            raise TargetRequired(field="text", model_id=self._model_id)
        if spec.logit_lens_top_k is not None:
            self._lens()
        plan = self._planner.plan(spec, batch)
        capture = self._capture(plan, spec, sink)
        started = time.perf_counter()
        with torch.inference_mode():
            outputs, last = self._run(batch, spec, plan, capture)
            capture.require_complete()
            if not self._is_registered:
                self._deliver_eager(outputs, plan, spec, sink)
            forward_ms = (time.perf_counter() - started) * 1000
            return ModelOutputs(
                hidden_states=self._hidden_states(outputs, last, spec),
                value_norms=capture.value_norms,
                logits=self._logits(outputs) if spec.logits else None,
                logit_lens=self._read_lens(outputs, last, spec.logit_lens_top_k),
                pooled=self._finite(pool(last, batch), "the embedding")
                if spec.pooled and pool is not None
                else None,
                forward_ms=forward_ms,
            )

    @property
    def _is_registered(self) -> bool:
        return self._capabilities.attention.support.method == "registered"

    def _capture(
        self, plan: CapturePlan, spec: CaptureSpec, sink: AttentionSink | None
    ) -> AttentionCapture:
        return AttentionCapture(
            self._capabilities.attention.sites,
            model_id=self._model_id,
            sink=sink,
            wanted=plan.wanted if self._is_registered else (),
            heads=spec.heads,
            cuts=plan.cuts,
            projections=plan.projections,
        )

    def _run(
        self, batch: Batch, spec: CaptureSpec, plan: CapturePlan, capture: AttentionCapture
    ) -> tuple[Any, Tensor]:
        """The model's outputs and the last hidden state of its text encoder."""
        armed: AbstractContextManager[None] = nullcontext()
        options: dict[str, int] = {} if spec.logits else self._inputs.without_logits
        if self._is_registered and (plan.wanted or plan.cuts or plan.projections):
            armed = observing(capture)
        elif plan.wanted:
            options["output_attentions"] = True
        if spec.hidden_states or spec.logit_lens_top_k is not None:
            options["output_hidden_states"] = True
        with armed, LastHiddenState(self._loaded) as last:
            outputs = self._model(**self._inputs.of(batch), **options)
        return outputs, last.state

    def _deliver_eager(
        self, outputs: Any, plan: CapturePlan, spec: CaptureSpec, sink: AttentionSink | None
    ) -> None:
        for name, layer in plan.wanted:
            weights = _unrounded(outputs[name][layer])
            chosen = weights if spec.heads is None else weights[:, list(spec.heads)]
            deliver((name, layer), chosen, sink=sink, model_id=self._model_id)

    def _hidden_states(
        self, outputs: Any, last: Tensor, spec: CaptureSpec
    ) -> dict[HiddenStatesName, Float32]:
        if not spec.hidden_states:
            return {}
        stacks = self._stacks(outputs, last)
        longest = max(len(states) for states in stacks.values())
        chosen: dict[HiddenStatesName, Float32] = {}
        for name, states in stacks.items():
            indices = _chosen_states(spec, len(states))
            if outside := [i for i in indices if not 0 <= i < longest]:
                raise LayerOutOfRange(
                    layer=outside[0], model_id=self._model_id, last_layer=longest - 1
                )
            kept = [states[index] for index in indices if index < len(states)]
            if kept:
                chosen[name] = self._finite(torch.stack(kept), f"its {name}")
        return chosen

    def _stacks(self, outputs: Any, last: Tensor) -> dict[HiddenStatesName, list[Tensor]]:
        stacks: dict[HiddenStatesName, list[Tensor]]
        if self._kind == "encoder-decoder":
            stacks = {
                "encoder_hidden_states": list(outputs["encoder_hidden_states"]),
                "decoder_hidden_states": list(outputs["decoder_hidden_states"]),
            }
        else:
            # the last one is what the model itself goes on with: after its final norm
            stacks = {"hidden_states": [*outputs["hidden_states"][:-1], last]}
        if any(state.shape != states[0].shape for states in stacks.values() for state in states):
            raise CapabilityMissing(
                model_id=self._model_id, reason="its hidden states differ in size between layers"
            )
        return stacks

    def _logits(self, outputs: Any) -> Float32:
        logits = outputs.get("logits")
        if logits is None:
            name = type(self._model).__name__
            raise CapabilityMissing(model_id=self._model_id, reason=f"{name} gives no logits")
        return self._finite(logits, "its logits")

    def _lens(self) -> Any:
        reader = self._capabilities.logit_lens
        if isinstance(reader, str):
            raise LogitLensUnavailable(model_id=self._model_id, reason=reader)
        return reader

    def _read_lens(self, outputs: Any, last: Tensor, top_k: int | None) -> LogitLens | None:
        if top_k is None:
            return None
        lens: LogitLens = self._lens().read(
            self._stacks(outputs, last)["hidden_states"], top_k=top_k
        )
        if not np.isfinite(lens.entropy).all():
            raise NonFiniteValues(model_id=self._model_id, where="its logit lens")
        return lens

    def _finite(self, values: Tensor, where: str) -> Float32:
        return finite(values, where=where, model_id=self._model_id)


def _unrounded(weights: Tensor) -> Tensor:
    """Eager weights in float32. Rows that half precision has rounded one weight at a time sum to
    less or more than 1, as if there were a sink: the self-test knows that there is none."""
    exact = weights.float()
    if weights.dtype == torch.float32:
        return exact
    return exact / exact.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def finite(values: Tensor, *, where: str, model_id: str) -> Float32:
    """As a numpy array. Raises NonFiniteValues."""
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteValues(model_id=model_id, where=where)
    return cast(Float32, values.float().cpu().numpy())


def _chosen_states(spec: CaptureSpec, count: int) -> Sequence[int]:
    """Indices into the whole list of hidden states; layer l gives number l + 1."""
    if spec.hidden_layers is not None:
        return spec.hidden_layers
    if spec.layers is not None:
        return [layer + 1 for layer in spec.layers]
    return range(count)
