"""Attention out of one forward pass: only the layers and heads asked for, one layer at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pellucid.errors import CaptureIncomplete, KnockoutInvalid, NonFiniteValues
from pellucid.models.attention.function import AttentionCall, Cut, NoKeyLeft
from pellucid.models.attention.output_projection import OutputProjection
from pellucid.models.attention.sites import AttentionSite, SiteKey
from pellucid.models.backend import AttentionSink, Float32


class AttentionCapture:
    """The observer of one request's forward pass.

    ``wanted`` goes to ``sink``, restricted to ``heads``; ``cuts`` change output and weights alike;
    ``projections`` names the sites whose value norms are computed. After the pass,
    ``require_complete`` tells whether all of it happened.
    """

    def __init__(
        self,
        sites: Sequence[AttentionSite],
        *,
        model_id: str,
        sink: AttentionSink | None = None,
        wanted: Collection[SiteKey] = (),
        heads: Sequence[int] | None = None,
        cuts: Mapping[SiteKey, Sequence[Cut]] | None = None,
        projections: Mapping[SiteKey, OutputProjection] | None = None,
    ) -> None:
        self._sites = sites
        self._model_id = model_id
        self._sink = sink
        self._wanted = frozenset(wanted)
        self._heads = heads
        self._cuts = cuts or {}
        self._projections = projections or {}
        self._calls = 0
        self._done: set[SiteKey] = set()
        self.value_norms: dict[SiteKey, Float32] = {}

    def attend(self, call: AttentionCall) -> Tensor:
        site = self._site_of(call)
        cuts = self._cuts.get(site.key, ())
        if site.key in self._projections:
            norms = self._projections[site.key].value_norms(call, heads=self._heads)
            if not bool(torch.isfinite(norms).all()):
                where = f"the value norms of layer {site.layer}"
                raise NonFiniteValues(model_id=self._model_id, where=where)
            self.value_norms[site.key] = norms.cpu().numpy()
        if cuts or call.beyond_sdpa:
            weights = self._cut_weights(call, cuts, layer=site.layer)
            if site.key in self._wanted:
                # a copy of its own: the receiver may write into it before the output is computed
                shown = weights.clone() if self._heads is None else weights[:, list(self._heads)]
                self._deliver(site.key, shown)
            output = call.output_of(weights)
        else:
            if site.key in self._wanted:
                self._deliver(site.key, call.weights(heads=self._heads))
            output = call.output()
        self._done.add(site.key)
        return output

    def require_complete(self) -> None:
        """Raise CaptureIncomplete unless every site asked for was seen."""
        asked = self._wanted | set(self._cuts) | set(self._projections)
        if missing := asked - self._done:
            raise CaptureIncomplete(
                model_id=self._model_id,
                layers=", ".join(f"{name}[{layer}]" for name, layer in sorted(missing)),
            )

    def _deliver(self, site: SiteKey, weights: Tensor) -> None:
        deliver(site, weights, sink=self._sink, model_id=self._model_id)

    def _site_of(self, call: AttentionCall) -> AttentionSite:
        # a layer may be run several times with shared weights: the order tells, the module confirms
        if self._calls < len(self._sites):
            site = self._sites[self._calls]
            if site.module is call.module:
                self._calls += 1
                return site
        raise CaptureIncomplete(
            model_id=self._model_id, layers=f"from call {self._calls} on, out of the known order"
        )

    def _cut_weights(self, call: AttentionCall, cuts: Sequence[Cut], *, layer: int) -> Tensor:
        try:
            return call.weights(cuts=cuts)
        except NoKeyLeft as blind:
            raise KnockoutInvalid(
                index=blind.index,
                reason=f"query {blind.query_position} keeps no key in layer {layer}, "
                f"head {blind.head}",
            ) from None


def deliver(site: SiteKey, weights: Tensor, *, sink: AttentionSink | None, model_id: str) -> None:
    """Hand one layer's weights over as numpy. Raises NonFiniteValues."""
    name, layer = site
    # weights lie in [0, 1]: their sum is finite exactly when all of them are
    if not torch.isfinite(weights.sum()):
        raise NonFiniteValues(model_id=model_id, where=f"the {name} of layer {layer}")
    if sink is not None:
        sink(name, layer, np.ascontiguousarray(weights.cpu().numpy()))
