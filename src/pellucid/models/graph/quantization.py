"""A graph's matrix products in int8, calibrated on texts that are shipped with Pellucid."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from pellucid.errors import EmptyText, GraphUnavailable
from pellucid.models.graph.runtime import ov

FeedOf = Callable[[list[str]], Mapping[str, Any]]

# How much of an activation's spread SmoothQuant moves into the weights (Xiao et al. 2023).
_SMOOTHING = 0.85
_ENCODER = "__module.encoder"
_ACTIVATIONS = {"Gelu", "Relu", "Swish"}


def calibration_texts() -> list[str]:
    """Of one word to some 250, in many languages and scripts, with code, numbers and noise."""
    text = files("pellucid.models.graph").joinpath("calibration.txt").read_text(encoding="utf-8")
    return text.splitlines()


def quantize(graph: ov.Model, feed_of: FeedOf, *, model_id: str) -> ov.Model:
    """The graph with int8 weights, and int8 inputs to the encoder's matrix products.

    ``feed_of`` gives the graph's inputs for texts; one at a time, so that no padding is counted
    among the activations. Attention's own products and everything behind the encoder stay exact,
    for they are little work, and so does the product behind the first layer's activation, whose
    few large values take most of what int8 loses. Raises GraphUnavailable.
    """
    try:
        import nncf
    except ImportError as error:
        reason = "int8 needs nncf (pip install 'pellucid[int8]')"
        raise GraphUnavailable(model_id=model_id, reason=reason) from error
    feeds = _feeds(feed_of)
    return nncf.quantize(
        graph,
        nncf.Dataset(feeds),
        subset_size=len(feeds),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(
            names=[*_outside_encoder(graph), *_behind_first_activation(graph)],
            types=["ScaledDotProductAttention"],
            validate=False,
        ),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=_SMOOTHING)
        ),
    )


def _feeds(feed_of: FeedOf) -> list[Mapping[str, Any]]:
    feeds = []
    for text in calibration_texts():
        try:
            feeds.append(feed_of([text]))
        except EmptyText:  # a script of which this model's tokenizer keeps nothing
            continue
    return feeds


def _outside_encoder(graph: ov.Model) -> list[str]:
    """Names of what pools, projects and normalises the encoder's last hidden state."""
    names = [str(node.get_friendly_name()) for node in _products(graph)]
    return [name for name in names if not name.startswith(_ENCODER)]


def _behind_first_activation(graph: ov.Model) -> list[str]:
    """Name of the first product that reads an activation function; none in gated layers."""
    reading = (
        str(node.get_friendly_name())
        for node in _products(graph)
        if node.input_value(0).get_node().get_type_name() in _ACTIVATIONS
    )
    return list(itertools.islice(reading, 1))


def _products(graph: ov.Model) -> list[Any]:
    return [node for node in graph.get_ordered_ops() if node.get_type_name() == "MatMul"]
