"""A torch model with its pooling as one OpenVINO graph."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.errors import GraphUnavailable
from pellucid.models.attention.function import AttentionCall, observing
from pellucid.models.embedding.pipeline import EmbeddingPipeline
from pellucid.models.graph.runtime import ov
from pellucid.models.text.embedding_tokenizer import EmbeddingTokenizer
from pellucid.models.transformers_backend import EmbeddingParts

OUTPUT = "embedding"
# Rotary positions that transformers computes anew from the longest text of a batch.
_BY_LENGTH = ("dynamic", "longrope")
# Unequal to each other and to every size of a model, so that a size taken for a constant shows.
_ROWS, _LENGTH = 3, 19
_HIDDEN = -1e9


class _Embedding(nn.Module):
    """Ids to embeddings, as ``TransformersBackend.encode`` computes them."""

    def __init__(self, parts: EmbeddingParts, names: Sequence[str]) -> None:
        super().__init__()
        self.encoder = parts.encoder
        self._pipeline: EmbeddingPipeline = parts.pipeline
        self._options = {"use_cache": False} if parts.takes_use_cache else {}
        self._names = tuple(names)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Tensors int64 in the order of ``names``: [batch, seq_len], but prompts [batch]."""
        inputs = dict(zip(self._names, tensors, strict=True))
        prompt_tokens = inputs.pop("num_prompt_tokens", None)
        outputs = self.encoder(**inputs, **self._options)
        return self._pipeline.pool(
            outputs.last_hidden_state, inputs["attention_mask"], prompt_tokens=prompt_tokens
        )


class _PlainAttention:
    """Attention as its formula, soft caps included, which OpenVINO fuses as well as its own
    operator. Learned sinks are left out: the families that have them cannot be traced, and the
    comparison with torch would tell.

    Hidden scores get a large number subtracted, not -inf, so that rows of padding, which may see
    nothing at all, stay finite.
    """

    def attend(self, call: AttentionCall) -> Tensor:
        scaling = call.options.get("scaling")
        scale = call.query.shape[-1] ** -0.5 if scaling is None else scaling
        key, value = (_per_query_head(tensor, call) for tensor in (call.key, call.value))
        scores = torch.matmul(call.query * scale, key.transpose(-1, -2))
        softcap = call.options.get("softcap")
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        position_bias = call.options.get("position_bias")
        if position_bias is not None:
            scores = scores + position_bias
        scores = _masked(scores, call)
        weights = torch.softmax(scores, dim=-1)
        return torch.matmul(weights, value).transpose(1, 2).contiguous()


def _per_query_head(tensor: Tensor, call: AttentionCall) -> Tensor:
    """Keys or values, those shared by several query heads repeated for each."""
    if call.queries_per_key == 1:
        return tensor
    return tensor.repeat_interleave(call.queries_per_key, dim=1)


def _masked(scores: Tensor, call: AttentionCall) -> Tensor:
    mask = call.attention_mask
    if mask is None and call.is_causal:
        mask = torch.ones_like(scores[:1, :1], dtype=torch.bool).tril()
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        # chosen, not computed: of a product, int8 compilation takes the mask for quantised values
        return scores + torch.where(mask, 0.0, _HIDDEN)
    return scores + mask.clamp(min=_HIDDEN)


def require_fixed_positions(parts: EmbeddingParts, *, model_id: str) -> None:
    """Raises GraphUnavailable for models whose positions depend on how long a text is: a graph
    keeps those of the example, and the texts that it is compared on are too short to tell."""
    for module in parts.encoder.modules():
        given = getattr(module, "rope_type", None)
        kinds = given.values() if isinstance(given, Mapping) else (given,)
        if any(name in str(kind) for kind in kinds for name in _BY_LENGTH):
            reason = "its positions change with the length of a text"
            raise GraphUnavailable(model_id=model_id, reason=reason)


def trace(parts: EmbeddingParts, tokenizer: EmbeddingTokenizer, names: Sequence[str]) -> ov.Model:
    """The graph: int32 inputs by ``names`` ("input_ids", "attention_mask" and, where the model
    wants them, "token_type_ids", "num_prompt_tokens"), float32 output [batch, dimensions].

    Padding must stand right. Raises whatever torch and OpenVINO raise.
    """
    example = _example(tokenizer, names)
    with torch.no_grad(), observing(_PlainAttention()), warnings.catch_warnings():
        # sizes met in Python are what tracing warns of; the parity test finds those that matter
        warnings.simplefilter("ignore")
        graph = ov.convert_model(
            _Embedding(parts, names), example_input=tuple(example[name] for name in names)
        )
    for port, name in zip(graph.inputs, names, strict=True):
        port.get_tensor().set_names({name})
        rank = example[name].ndim
        port.get_node().set_partial_shape(ov.PartialShape([-1] * rank))
    graph.outputs[0].get_tensor().set_names({OUTPUT})
    graph.validate_nodes_and_infer_types()
    return _with_int32_inputs(graph)


def _example(tokenizer: EmbeddingTokenizer, names: Sequence[str]) -> Mapping[str, Tensor]:
    """Rows of different lengths, so that no mask may be left out."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(0, tokenizer.vocab_size, (_ROWS, _LENGTH), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    for row in range(1, _ROWS):
        attention_mask[row, _LENGTH - 4 * row :] = 0
        input_ids[row, _LENGTH - 4 * row :] = tokenizer.pad_id
    tensors: dict[str, Any] = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": torch.zeros_like(input_ids),
        "num_prompt_tokens": torch.tensor([0, 2, 1][:_ROWS]),
    }
    return {name: tensors[name] for name in names}


def _with_int32_inputs(graph: ov.Model) -> ov.Model:
    """The device computes indices in int32: taking them so spares it the conversion."""
    steps = ov.preprocess.PrePostProcessor(graph)
    for port in graph.inputs:
        steps.input(port.any_name).tensor().set_element_type(ov.Type.i32)
    return steps.build()
