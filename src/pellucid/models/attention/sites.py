"""Where in a model attention happens: found by watching one small forward pass, not by names of
families."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pellucid.models.attention.function import AttentionCall
from pellucid.models.backend import AttentionName

SiteKey = tuple[AttentionName, int]

# What the attention function accounts for, or what bears no number of the formula.
_UNDERSTOOD = frozenset(
    {"position_bias", "s_aux", "position_ids", "cache_position", "cu_seq_lens_q", "cu_seq_lens_k"}
)


class SitesUnclear(Exception):
    """The calls that were seen cannot be told apart; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSite:
    """One attention of the forward pass. Sites are in the order in which they run."""

    name: AttentionName
    layer: int  # of its stack, counted as the model counts (layers without attention included)
    num_heads: int
    module: nn.Module = field(repr=False)
    path: str
    beyond_sdpa: bool
    unknown_options: tuple[str, ...] = ()  # tensors that the attention function does not use

    @property
    def key(self) -> SiteKey:
        return self.name, self.layer


@dataclass(frozen=True, slots=True)
class SeenCall:
    """What is remembered of one call during the search."""

    module: nn.Module
    num_heads: int
    query_len: int
    key_len: int
    beyond_sdpa: bool
    unknown_options: tuple[str, ...]


class SiteSearch:
    """An observer that notes who calls."""

    def __init__(self) -> None:
        self.calls: list[SeenCall] = []

    def attend(self, call: AttentionCall) -> Tensor:
        self.calls.append(
            SeenCall(
                module=call.module,
                num_heads=call.num_heads,
                query_len=call.query.shape[2],
                key_len=call.key.shape[2],
                beyond_sdpa=call.beyond_sdpa,
                unknown_options=tuple(
                    name
                    for name, value in call.options.items()
                    if isinstance(value, torch.Tensor) and name not in _UNDERSTOOD
                ),
            )
        )
        return call.output()


def name_sites(
    model: nn.Module,
    calls: Sequence[SeenCall],
    *,
    num_layers: Mapping[AttentionName, int],
    encoder_len: int,
) -> tuple[AttentionSite, ...]:
    """The sites in the order of ``calls``.

    ``num_layers`` names the stacks that the model has; ``encoder_len`` is the length of the input,
    which differs from that of the target, so that cross attention is known by its keys. Raises
    SitesUnclear.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    described = [(call, paths.get(id(call.module))) for call in calls]
    named: list[tuple[AttentionName, SeenCall, str]] = []
    for call, path in described:
        if path is None:
            raise SitesUnclear(f"{type(call.module).__name__} is not a part of the model")
        named.append((_stack(call, path, num_layers, encoder_len), call, path))
    layers = _layers([(name, path) for name, _, path in named], num_layers)
    return tuple(
        AttentionSite(
            name=name,
            layer=layer,
            num_heads=call.num_heads,
            module=call.module,
            path=path,
            beyond_sdpa=call.beyond_sdpa,
            unknown_options=call.unknown_options,
        )
        for (name, call, path), layer in zip(named, layers, strict=True)
    )


def _stack(
    call: SeenCall, path: str, num_layers: Mapping[AttentionName, int], encoder_len: int
) -> AttentionName:
    if "attentions" in num_layers:
        return "attentions"
    parts = path.split(".")
    if "encoder" in parts:
        return "encoder_attentions"
    if "decoder" in parts:
        return "cross_attentions" if call.key_len == encoder_len else "decoder_attentions"
    raise SitesUnclear(f"{path} belongs neither to an encoder nor to a decoder")


def _layers(
    sites: Sequence[tuple[AttentionName, str]], num_layers: Mapping[AttentionName, int]
) -> list[int]:
    """The layer of each site: the first number of its path where those tell them apart, else
    (layers that share their weights) the order of the calls, if there is one call per layer."""
    by_path = [_first_number(path) for _, path in sites]
    counts = Counter((name, layer) for (name, _), layer in zip(sites, by_path, strict=True))
    layers: list[int] = []
    seen: Counter[AttentionName] = Counter()
    for (name, path), layer in zip(sites, by_path, strict=True):
        total = num_layers[name]
        of_this_stack = [key for key in counts if key[0] == name]
        distinct = all(counts[key] == 1 and key[1] is not None for key in of_this_stack)
        if distinct and layer is not None and layer < total:
            layers.append(layer)
        elif sum(counts[key] for key in of_this_stack) == total:
            layers.append(seen[name])
        else:
            raise SitesUnclear(f"{path} cannot be assigned to one of {total} layers")
        seen[name] += 1
    return layers


def _first_number(path: str) -> int | None:
    return next((int(part) for part in path.split(".") if part.isdigit()), None)
