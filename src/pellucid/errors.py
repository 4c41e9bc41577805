"""Every error that Pellucid raises on purpose, as one tree with stable codes.

    PellucidError
    ├── InvalidInput              the request itself is wrong; sending it again will not help
    │   ├── EmptyText  InvalidText  TextTooLarge  TooManyTokens  TooManyInputs  InvalidInputIds
    │   ├── LayerOutOfRange  HeadOutOfRange  PositionOutOfRange  DimensionsUnsupported
    │   ├── TooFewTokens  TargetRequired  TargetUnsupported  PairUnsupported  ChatTemplateMissing
    │   ├── InvalidModelId  InvalidRequest  PromptUnknown  KnockoutInvalid  InputsConflict
    │   ├── InvalidSettings  InputUnreadable  InputChanged  OutputUnusable      command line only
    │   └── TooLarge              the answer or its working memory would be over a limit
    ├── CapabilityMissing         the model cannot do this, and says why
    │   └── AttentionUnavailable  NormWeightedUnavailable  LogitLensUnavailable
    │       GenerationUnavailable  EmbeddingUnavailable
    ├── ModelUnavailable          the model cannot be had
    │   └── ModelNotFound  ModelPrivate  ModelGatedNoToken  ModelGatedNotAccepted  ModelTooLarge
    │       ModelOffline  HubUnreachable  DownloadFailed  NoLoadableWeights  RemoteCodeRequired
    │       WeightsCorrupt  ModelLoadFailed  ModelInUse  ModelNotLoaded  OutOfMemory
    │       NoFreeModelSlot  GraphUnavailable
    ├── Refused                   who asks, or how much at once
    │   └── Unauthorized  Forbidden  Overloaded  DeadlineExceeded  NotReady  TakesTooLong
    ├── StartFailed               the server cannot listen where it was told to
    │   └── PortTaken  AddressUnavailable
    └── InternalError             our fault
        └── CaptureIncomplete  NonFiniteValues  ForwardOutOfMemory  WorkerReplaced

The tree knows no HTTP: ``api/error_handlers.py`` holds the one table from code to status.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pellucid.units import format_bytes

_BYTES_SUFFIX = "_bytes"


class PellucidError(Exception):
    """An error with a stable ``code``, a sentence with the numbers, and the way out.

    Subclasses declare ``code``, ``title``, ``template`` (the sentence; ``{facts}`` are filled in)
    and ``way_out``. Facts are keyword-only and stay machine-readable in ``facts``; those whose name
    ends in ``_bytes`` are shown with a unit.
    """

    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    template: ClassVar[str] = "Something failed inside Pellucid."
    way_out: ClassVar[str] = "Please report it with the request id."

    def __init__(self, **facts: Any) -> None:
        self.facts = facts
        super().__init__(self.detail)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross process boundaries (workers); keyword facts must survive the trip.
        return _rebuild, (type(self), self.facts)

    @property
    def detail(self) -> str:
        """What happened, with its numbers, then the way out."""
        shown = {
            name: format_bytes(value)
            if name.endswith(_BYTES_SUFFIX) and isinstance(value, int)
            else value
            for name, value in self.facts.items()
        }
        sentence = self.template.format_map(_Missing(shown))
        way_out = self.way_out.format_map(_Missing(shown))
        return f"{sentence} {way_out}".strip()

    @classmethod
    def tree(cls) -> Iterator[type[PellucidError]]:
        """This class and all its subclasses, parents first."""
        yield cls
        for subclass in cls.__subclasses__():
            yield from subclass.tree()


class _Missing(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return f"<{key}>"


def _rebuild(kind: type[PellucidError], facts: dict[str, Any]) -> PellucidError:
    return kind(**facts)


# --------------------------------------------------------------------------- the request is wrong


class InvalidInput(PellucidError):
    code = "invalid_input"
    title = "Invalid input"
    template = "{reason}"
    way_out = ""


class InvalidRequest(InvalidInput):
    code = "invalid_request"
    title = "The request does not have the documented form"
    template = "{reason}"
    way_out = "See /docs for the form of every request."


class EmptyText(InvalidInput):
    code = "empty_text"
    title = "Empty text"
    template = "{field} is empty or holds only white space."
    way_out = "Send at least one visible character."


class InvalidText(InvalidInput):
    code = "invalid_text"
    title = "Text that is not Unicode"
    template = "{field} holds {problem} at character {position}."
    way_out = "Send valid Unicode text without NUL characters."


class TextTooLarge(InvalidInput):
    code = "text_too_large"
    title = "Text too large"
    template = "{field} has {characters} characters, the limit is {max_characters}."
    way_out = "Split the text, or raise `max_text_characters`."


class TooManyTokens(InvalidInput):
    code = "too_many_tokens"
    title = "Too many tokens"
    template = "{field} has {tokens} tokens, {model_id} takes at most {max_tokens}."
    way_out = 'Shorten it, or send `"truncate": "end"` to cut it.'


class TooManyInputs(InvalidInput):
    code = "too_many_inputs"
    title = "Too many inputs"
    template = "The request has {inputs} inputs, the limit is {max_inputs}."
    way_out = "Send them in several requests."


class InvalidInputIds(InvalidInput):
    code = "invalid_input_ids"
    title = "Token ids outside the vocabulary"
    template = "{field} holds {token_id} at position {position}, the vocabulary has {vocab_size}."
    way_out = "Send ids made by this model's own tokenizer."


class LayerOutOfRange(InvalidInput):
    code = "layer_out_of_range"
    title = "No such layer"
    template = "Layer {layer} was asked for, {model_id} has layers 0 to {last_layer}."
    way_out = "Layers count from 0."


class HeadOutOfRange(InvalidInput):
    code = "head_out_of_range"
    title = "No such head"
    template = "Head {head} was asked for, {model_id} has heads 0 to {last_head}."
    way_out = "Heads count from 0."


class PositionOutOfRange(InvalidInput):
    code = "position_out_of_range"
    title = "No such token position"
    template = "{field} {position} was asked for, the sequence has positions 0 to {last_position}."
    way_out = "Positions count from 0 and include special tokens."


class DimensionsUnsupported(InvalidInput):
    code = "dimensions_unsupported"
    title = "The model's vectors cannot be shortened so"
    template = (
        "{model_id} gives {native_dimensions} dimensions, {dimensions} were asked for: {reason}."
    )
    way_out = "Leave `dimensions` out, or choose a model trained for shorter vectors (Matryoshka)."


class TooFewTokens(InvalidInput):
    code = "too_few_tokens"
    title = "Too few tokens"
    template = "{method} needs at least {min_tokens} tokens, the text has {tokens}."
    way_out = "Send a longer text, or use `pca`."


class TargetRequired(InvalidInput):
    code = "target_required"
    title = "Target text missing"
    template = "{field} needs a target text for the encoder-decoder model {model_id}."
    way_out = "Send `target_text`."


class TargetUnsupported(InvalidInput):
    code = "target_unsupported"
    title = "The model has no decoder for a target text"
    template = "target_text was sent, {model_id} is not an encoder-decoder model."
    way_out = "Leave `target_text` out."


class PairUnsupported(InvalidInput):
    code = "pair_unsupported"
    title = "No text pairs for this request"
    template = "text_pair was sent: {reason}."
    way_out = "Leave `text_pair` out."


class ChatTemplateMissing(InvalidInput):
    code = "chat_template_missing"
    title = "The model has no chat template"
    template = "messages were sent, the tokenizer of {model_id} has no chat template."
    way_out = "Send `text`."


class InputsConflict(InvalidInput):
    code = "inputs_conflict"
    title = "Exactly one input is needed"
    template = "The request holds {given}; exactly one of {choices} is needed."
    way_out = ""


class InvalidModelId(InvalidInput):
    code = "invalid_model_id"
    title = "Not a model id"
    template = (
        "{model_id!r} is neither `name`, `owner/name` nor a permitted local folder: {reason}."
    )
    way_out = "Name a model as on the Hub, or put the folder under `local_models_dir`."


class PromptUnknown(InvalidInput):
    code = "prompt_unknown"
    title = "The model has no such prompt"
    template = "Prompt {prompt!r} was asked for, {model_id} has: {known}."
    way_out = "Leave it out, or name one of these."


class KnockoutInvalid(InvalidInput):
    code = "knockout_invalid"
    title = "The knock-out cannot be applied"
    template = "knockouts[{index}]: {reason}."
    way_out = (
        "Name edges that exist, and leave every query at least one key: position 0 of a causal "
        "model sees only itself, so name `query_positions` from 1 on."
    )


class TooLarge(InvalidInput):
    code = "too_large"
    title = "The request is larger than this server allows"
    template = "{what} needs {needed_bytes}, the limit is {limit_bytes} (`{setting}`)."
    way_out = "{suggestion}"


class InvalidSettings(InvalidInput):
    code = "invalid_settings"
    title = "A setting has an impossible value"
    template = "{problems}."
    way_out = "`pellucid settings` shows every setting and where its value comes from."


class InputUnreadable(InvalidInput):
    code = "input_unreadable"
    title = "The input file cannot be read"
    template = "{file}: {reason}."
    way_out = "{suggestion}"


class InputChanged(InvalidInput):
    code = "input_changed"
    title = "The input is not the one that this output was begun with"
    template = "{output} was begun with {was}, now it is {now}."
    way_out = "Name another output, or remove {output} and {job_file} to begin anew."


class OutputUnusable(InvalidInput):
    code = "output_unusable"
    title = "The output cannot be written there"
    template = "{output}: {reason}."
    way_out = "{suggestion}"


# --------------------------------------------------------------- the model cannot do what is asked


class CapabilityMissing(PellucidError):
    code = "capability_missing"
    title = "The model cannot do this"
    template = "{model_id}: {reason}."
    way_out = "Choose another model."


class AttentionUnavailable(CapabilityMissing):
    code = "attention_unavailable"
    title = "This model's attention cannot be captured exactly"
    template = "{model_id} gives no exact attention{where}: {reason}."
    way_out = "Hidden states and embeddings of it are available."


class NormWeightedUnavailable(CapabilityMissing):
    code = "norm_weighted_unavailable"
    title = "Norm-weighted attention cannot be computed exactly"
    template = "{model_id} gives no norm-weighted attention: {reason}."
    way_out = "Raw attention of it is available."


class LogitLensUnavailable(CapabilityMissing):
    code = "logit_lens_unavailable"
    title = "The logit lens cannot be computed exactly"
    template = "{model_id} gives no logit lens: {reason}."
    way_out = "Use a causal language model with one final norm and one output matrix."


class GenerationUnavailable(CapabilityMissing):
    code = "generation_unavailable"
    title = "The model does not generate text"
    template = "{model_id} does not generate text: {reason}."
    way_out = "Choose a causal or an encoder-decoder model."


class EmbeddingUnavailable(CapabilityMissing):
    code = "embedding_unavailable"
    title = "The model gives no text embeddings"
    template = "{model_id} gives no text embeddings: {reason}."
    way_out = "Choose a text encoder."


# ------------------------------------------------------------------------- the model cannot be had


class ModelUnavailable(PellucidError):
    code = "model_unavailable"
    title = "The model cannot be had"
    template = "{model_id}: {reason}."
    way_out = ""


class ModelNotFound(ModelUnavailable):
    code = "model_not_found"
    title = "No such model"
    template = "{model_id} at revision {revision} was not found on the Hub nor on this machine."
    way_out = "Check the spelling; a private repository needs `HF_TOKEN`."


class ModelPrivate(ModelUnavailable):
    code = "model_private"
    title = "The repository is private"
    template = "The Hub did not let this server's token read {model_id}."
    way_out = "Set `HF_TOKEN` to a token of an account that may read it."


class ModelGatedNoToken(ModelUnavailable):
    code = "model_gated_no_token"
    title = "The repository is gated and no token is set"
    template = "{model_id} asks its readers to accept a licence and no token is set."
    way_out = "Accept the licence at {url}, then set `HF_TOKEN`."


class ModelGatedNotAccepted(ModelUnavailable):
    code = "model_gated_not_accepted"
    title = "The licence of the repository is not accepted"
    template = "The account behind `HF_TOKEN` has not been granted access to {model_id}."
    way_out = "Accept the licence at {url} with that account."


class ModelTooLarge(ModelUnavailable):
    code = "model_too_large"
    title = "The model is over the size limit"
    template = "{model_id} needs {size_bytes}, the limit is {limit_bytes}."
    way_out = "Raise `max_model_bytes` or choose a smaller one."


class ModelOffline(ModelUnavailable):
    code = "model_offline"
    title = "Offline, and the model is not on this machine"
    template = "{model_id} is not in the cache of this machine and the server works offline."
    way_out = "Unset `HF_HUB_OFFLINE` (setting `offline`), or copy the model into the cache."


class HubUnreachable(ModelUnavailable):
    code = "hub_unreachable"
    title = "The Hub cannot be reached"
    template = "The Hub at {endpoint} did not answer: {reason}."
    way_out = "Check the network; models already on this machine keep working."


class DownloadFailed(ModelUnavailable):
    code = "download_failed"
    title = "The download broke off"
    template = "{file} of {model_id} stopped at {received_bytes} of {size_bytes}: {reason}."
    way_out = "Ask again: the download goes on from there."


class NoLoadableWeights(ModelUnavailable):
    code = "no_loadable_weights"
    title = "The repository has no weights that can be loaded"
    template = "{model_id} holds no safetensors or PyTorch weights (found: {found})."
    way_out = "Choose a repository with model.safetensors or pytorch_model.bin."


class RemoteCodeRequired(ModelUnavailable):
    code = "remote_code_required"
    title = "The model wants to run code of its own"
    template = "{model_id} can only be loaded by running Python code from its repository."
    way_out = "Read that code; if you trust it, set `trust_remote_code=true`."


class WeightsCorrupt(ModelUnavailable):
    code = "weights_corrupt"
    title = "A file is not what was published"
    template = "{file} of {model_id} has sha-256 {actual}, {expected} was expected."
    way_out = "Install it again; it was not used."


class ModelLoadFailed(ModelUnavailable):
    code = "model_load_failed"
    title = "The model could not be loaded"
    template = "{model_id} could not be loaded: {reason}."
    way_out = ""


class ModelNotLoaded(ModelUnavailable):
    code = "model_not_loaded"
    title = "The model is not loaded"
    template = "{model_id} is not loaded."
    way_out = "GET /v1/models lists those that are."


class ModelInUse(ModelUnavailable):
    code = "model_in_use"
    title = "The model is at work"
    template = "{model_id} answers {requests} requests just now."
    way_out = "Ask again when they are done."


class OutOfMemory(ModelUnavailable):
    code = "out_of_memory"
    title = "Not enough memory"
    template = "{model_id} needs {needed_bytes}, {available_bytes} can be freed of {budget_bytes}."
    way_out = "Unload a model, or raise `memory_budget_bytes`."


class NoFreeModelSlot(ModelUnavailable):
    code = "no_free_model_slot"
    title = "Every place for a model is taken"
    template = "{model_id}: {busy} models are at work, the limit is {max_loaded_models}."
    way_out = "Ask again when one is idle, or raise `max_loaded_models`."


class GraphUnavailable(ModelUnavailable):
    code = "graph_unavailable"
    title = "No OpenVINO graph of this model"
    template = "{model_id} cannot be embedded with OpenVINO: {reason}."
    way_out = "Set `embedding_runtime=auto` to have PyTorch embed such models."


# ------------------------------------------------------------------------ who asks, or how much


class Refused(PellucidError):
    code = "refused"
    title = "Refused"
    template = "{reason}"
    way_out = ""


class Unauthorized(Refused):
    code = "unauthorized"
    title = "A token is needed"
    template = "This server needs a token: {reason}."
    way_out = "Send `Authorization: Bearer TOKEN`."


class Forbidden(Refused):
    code = "forbidden"
    title = "Not permitted"
    template = "{reason}."
    way_out = ""


class Overloaded(Refused):
    code = "overloaded"
    title = "Too much at once"
    template = "{waiting} {unit} wait for {model_id}, the limit is {max_waiting}."
    way_out = "Ask again in {retry_after_s} s."

    def __init__(self, *, unit: Literal["requests", "tokens"] = "requests", **facts: Any) -> None:
        super().__init__(unit=unit, **facts)


class DeadlineExceeded(Refused):
    code = "deadline_exceeded"
    title = "It took too long"
    template = "The request did not finish within {timeout_s} s."
    way_out = "Send less, or raise `request_timeout_s`."


class TakesTooLong(Refused):
    code = "takes_too_long"
    title = "It would take too long"
    template = (
        "{tokens} tokens would take about {estimated_s} s with {model_id}, the limit is "
        "{timeout_s} s."
    )
    way_out = "Send at most {max_tokens} tokens at once, or raise `request_timeout_s`."


class NotReady(Refused):
    code = "not_ready"
    title = "Not ready yet"
    template = "The server is still {phase}."
    way_out = "Ask again in {retry_after_s} s; GET /ready tells how far it is."


# -------------------------------------------------------------------------- the server cannot start


class StartFailed(PellucidError):
    code = "start_failed"
    title = "The server cannot start"
    template = "{reason}"
    way_out = ""


class PortTaken(StartFailed):
    code = "port_taken"
    title = "The port is taken"
    template = "Port {port} on {host} is taken by {holder}."
    way_out = "Stop it, or choose another with `--port` (0 lets the system choose)."


class AddressUnavailable(StartFailed):
    code = "address_unavailable"
    title = "The address cannot be listened on"
    template = "{host}:{port} cannot be listened on: {reason}."
    way_out = "Choose an address of this machine with `--host`, and a port that you may use."


# --------------------------------------------------------------------------------------- our fault


class InternalError(PellucidError):
    code = "internal_error"


class CaptureIncomplete(InternalError):
    code = "capture_incomplete"
    title = "Not every layer asked for was captured"
    template = "{model_id} ran without giving the attention of layers {layers}."


class NonFiniteValues(InternalError):
    code = "non_finite_values"
    title = "The model computed values that are not numbers"
    template = "{model_id} gave NaN or infinite values in {where}."
    way_out = "Try another text, or load the model in float32 (`dtype=float32`)."


class ForwardOutOfMemory(InternalError):
    code = "forward_out_of_memory"
    title = "Not enough memory for this input"
    template = "{model_id} ran out of memory on a batch of {inputs} inputs of {tokens} tokens."
    way_out = "Send shorter texts, or unload other models."


class WorkerReplaced(InternalError):
    code = "worker_replaced"
    title = "The model stopped answering"
    template = "What ran {model_id} {what} and was replaced."
    way_out = "Ask again in {retry_after_s} s."
