"""What a loaded model can show, proved once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pellucid.models.attention.output_projection import ProjectionFindings, find_projections
from pellucid.models.attention.selftest import AttentionFindings, find_attention
from pellucid.models.backend import AttentionName
from pellucid.models.logit_lens_capture import LogitLensReader, find_logit_lens
from pellucid.models.probe import Probe, last_hidden_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Findings of the probe that a freshly loaded model was given."""

    num_layers: Mapping[AttentionName, int]
    hidden_size: int
    attention: AttentionFindings
    projections: ProjectionFindings
    logit_lens: LogitLensReader | str  # or why there is none

    @classmethod
    def prove(cls, probe: Probe) -> Capabilities:
        """A handful of forward passes of a dozen tokens."""
        attention = find_attention(probe)
        outputs = probe.run(probe.single, output_hidden_states=True)
        return cls(
            num_layers=probe.num_layers,
            hidden_size=int(last_hidden_state(outputs).shape[-1]),
            attention=attention,
            projections=find_projections(probe, attention.sites),
            logit_lens=find_logit_lens(probe),
        )
