"""From a folder to a model in memory: class, data type, device, attention function."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto import auto_factory, modeling_auto
from transformers.utils import logging as transformers_logging

from pellucid.errors import ModelLoadFailed, PellucidError, RemoteCodeRequired
from pellucid.models.attention import function as attention_function
from pellucid.models.backend import ModelKind
from pellucid.models.sources.repository_layout import RepositoryLayout
from pellucid.models.sources.source import ModelSource

# Heads on top that nothing here uses; their weights may be missing and then stay unread.
_UNUSED_WEIGHTS = re.compile(r"(^|\.)pooler\.|(^|\.)position_ids$")
_NAMED_IN_MESSAGE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedTransformer:
    """A model ready to run, and how it was loaded."""

    model: PreTrainedModel
    config: Any
    kind: ModelKind
    implementation: str  # of attention: the registered function, "eager", or the model's own
    device: torch.device
    dtype: torch.dtype


def load_transformer(
    source: ModelSource,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> LoadedTransformer:
    """The model of a folder, in evaluation mode, on its device. The network is never asked.

    Raises ModelLoadFailed, also where weights that matter are missing from the files (the library
    would draw them at random), and RemoteCodeRequired.
    """
    attention_function.register()
    _be_quiet()
    where = choose_device(device)
    precision = choose_dtype(dtype, where)
    try:
        folder = RepositoryLayout.read(source.folder, model_id=source.model_id).transformer_folder
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
        _ask_for_nothing(config)
        return _first_complete(
            folder,
            config,
            source=source,
            device=where,
            dtype=precision,
            trust_remote_code=trust_remote_code,
        )
    except PellucidError:
        raise
    except Exception as error:  # the library raises nearly every kind
        if "trust_remote_code" in str(error) and not trust_remote_code:
            raise RemoteCodeRequired(model_id=source.model_id) from error
        raise ModelLoadFailed(model_id=source.model_id, reason=_first_line(error)) from error


def choose_device(device: str) -> torch.device:
    """auto: cuda, then mps, then cpu."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """auto: float32, but on cuda bfloat16 where the card computes it, else float16."""
    if dtype != "auto":
        chosen = getattr(torch, dtype)
        assert isinstance(chosen, torch.dtype)
        return chosen
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def candidate_classes(config: Any) -> list[tuple[Any, ModelKind]]:
    """Classes that may hold this model, the best first, each with what the model then is."""
    architecture = next(iter(getattr(config, "architectures", None) or ()), "")
    model_type = getattr(config, "model_type", "")
    if architecture.endswith("EncoderModel") and hasattr(transformers, architecture):
        return [(getattr(transformers, architecture), "encoder")]
    if getattr(config, "is_encoder_decoder", False):
        classes: list[tuple[Any, ModelKind]] = [
            (transformers.AutoModelForSeq2SeqLM, "encoder-decoder"),
            (transformers.AutoModel, "encoder-decoder"),
        ]
        if model_type in modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES:
            classes.append((transformers.AutoModelForTextEncoding, "encoder"))
        return classes
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return [(transformers.AutoModelForCausalLM, "decoder"), (transformers.AutoModel, "decoder")]
    causal = model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return [(transformers.AutoModel, "decoder" if causal and not masked else "encoder")]


def _first_complete(
    folder: Path,
    config: Any,
    *,
    source: ModelSource,
    device: torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool,
) -> LoadedTransformer:
    """The first candidate class for which the files hold every weight."""
    missing: list[str] = []
    for auto_class, kind in candidate_classes(config):
        model, implementation, missing = _load(
            auto_class, folder, config, dtype=dtype, trust_remote_code=trust_remote_code
        )
        if not missing:
            model.to(device)  # type: ignore[arg-type]
            model.train(False)
            model.requires_grad_(False)
            return LoadedTransformer(
                model=model,
                config=model.config,
                kind=kind,
                implementation=implementation,
                device=device,
                dtype=dtype,
            )
    shown = ", ".join(missing[:_NAMED_IN_MESSAGE])
    raise ModelLoadFailed(
        model_id=source.model_id,
        reason=f"{len(missing)} of its weights are in none of its files ({shown})",
    )


def _load(
    auto_class: Any, folder: Path, config: Any, *, dtype: torch.dtype, trust_remote_code: bool
) -> tuple[PreTrainedModel, str, list[str]]:
    """The model, its attention implementation, and the names of weights that no file holds."""
    implementation = _implementation(auto_class, config)

    def load(**options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        model, info = auto_class.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **options,
        )
        return model, info

    try:
        model, info = load(attn_implementation=implementation)
    except (ValueError, KeyError) as error:
        if implementation != "eager" or "eager" not in str(error):
            raise
        model, info = load()  # a model with one attention only, which has no name
        implementation = str(getattr(model.config, "_attn_implementation", None) or "own")
    missing = sorted(name for name in info["missing_keys"] if not _UNUSED_WEIGHTS.search(name))
    return model, implementation, missing


def _implementation(auto_class: Any, config: Any) -> str:
    """The registered function for classes whose layers look their attention up; else eager."""
    model_class = auto_class
    mapping = getattr(auto_class, "_model_mapping", None)
    if mapping is not None:
        if type(config) not in mapping:
            return "eager"  # code of the repository's own
        model_class = auto_factory._get_model_class(config, mapping)  # type: ignore[no-untyped-call]
    return attention_function.IMPLEMENTATION if _looks_up(model_class) else "eager"


def _looks_up(model_class: Any) -> bool:
    asked = getattr(model_class, "_can_set_attn_implementation", None)
    return bool(asked is not None and asked())


def _ask_for_nothing(config: Any) -> None:
    # a saved configuration may ask for every output always; here each request asks for itself
    config.output_hidden_states = False
    config.output_attentions = False
    config.return_dict = True  # and results by name, whatever was saved


def _be_quiet() -> None:
    """Nothing of the library's own reporting: bars would write between our progress lines."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
