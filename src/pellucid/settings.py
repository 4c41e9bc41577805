"""Every knob of Pellucid, with unit, default and meaning; the only reader of the environment.

Each setting is read from ``PELLUCID_<NAME>``, then from ``.env``; the variables of the earlier
systems are accepted as well (their names stand beside the setting). ``docs/settings.md`` is made
from this file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from dotenv import dotenv_values
from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

DEFAULT_MODEL_ID = "sentence-transformers/all-MiniLM-L6-v2"


def _comma_separated(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated)]


def _from(*names: str) -> AliasChoices:
    """Environment names, the first that is set wins; the field's own PELLUCID_ name comes first."""
    return AliasChoices(*names)


class Settings(BaseSettings):
    """One frozen value, made once in the composition root and passed on."""

    model_config = SettingsConfigDict(
        env_prefix="PELLUCID_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
    )

    # --- where it listens
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(
        8421,
        ge=0,
        le=65535,
        validation_alias=_from("PELLUCID_PORT", "PORT"),
        description="Port to listen on; 0 lets the system choose one (see `server_ready`).",
    )
    cors_origins: Names = Field(
        (),
        description="Web origins that may call the API, comma separated; empty: none.",
    )
    auth_token: SecretStr | None = Field(
        None,
        description="Bearer token that every request needs. Unset on loopback: no sign-in. "
        "Unset elsewhere: a token is made, printed once to the terminal, and required.",
    )

    # --- what it keeps, where
    data_dir: Path = Field(
        Path("~/.local/share/pellucid"),
        validate_default=True,
        description="Folder for everything that Pellucid keeps.",
    )
    local_models_dir: Path | None = Field(
        None,
        description="Folder whose subfolders may be named as models by requests. "
        "The operator's own `model` may lie anywhere.",
    )

    # --- models
    model: str = Field(
        DEFAULT_MODEL_ID,
        validation_alias=_from("PELLUCID_MODEL", "MODEL_NAME", "MODEL_REPO_URL"),
        description="Default model: a Hub id, or a local folder.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of the default model.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="Where models run; auto: cuda, then mps, then cpu."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Weights in memory; auto: float32 on cpu and mps, bfloat16 on cuda if it can.",
    )
    embedding_runtime: Literal["auto", "openvino", "torch"] = Field(
        "auto",
        description="What embeds on cpu; auto: OpenVINO for every model that it converts and that "
        "then agrees with PyTorch, else PyTorch, which says why.",
    )
    embedding_precision: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="Of OpenVINO's matrix products; auto: bfloat16 if the CPU has it."
    )
    quantization: Literal["none", "int8"] = Field(
        "none",
        description="int8: smaller and faster embeddings, a little less exact; /info tells how "
        "much. Needs the extra `int8`.",
    )
    min_parity: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Least cosine between OpenVINO's and PyTorch's embedding of any test text; "
        "unset: 0.999, with int8 0.95.",
    )
    allow_other_models: bool = Field(
        True, description="Requests may name models besides the default one."
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that a model's repository brings."
    )
    max_model_bytes: int = Field(
        6_000_000_000, gt=0, description="Largest model that may be loaded, bytes of weights."
    )
    memory_budget_bytes: int | None = Field(
        None,
        gt=0,
        description="Memory for all loaded models together; unset: 60 % of the device's memory.",
    )
    max_loaded_models: int = Field(8, gt=0, description="Models kept loaded at once.")

    # --- the Hub
    hf_token: SecretStr | None = Field(
        None,
        validation_alias=_from("PELLUCID_HF_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
        description="Token for gated and private repositories.",
    )
    hub_endpoint: str = Field(
        "https://huggingface.co",
        validation_alias=_from("PELLUCID_HUB_ENDPOINT", "HF_ENDPOINT"),
        description="Address of the Hub.",
    )
    hub_cache_dir: Path | None = Field(
        None,
        validation_alias=_from("PELLUCID_HUB_CACHE_DIR", "HF_HUB_CACHE"),
        description="Cache of downloaded models; unset: the Hub library's own.",
    )
    offline: bool = Field(
        False,
        validation_alias=_from("PELLUCID_OFFLINE", "HF_HUB_OFFLINE"),
        description="Never ask the Hub; use what is on this machine.",
    )
    hub_timeout_s: float = Field(10.0, gt=0, description="Wait for one answer of the Hub, seconds.")

    # --- limits
    max_text_characters: int = Field(
        500_000, gt=0, description="Longest single text, characters, checked before tokenisation."
    )
    max_inputs: int = Field(2_048, gt=0, description="Most inputs in one embedding request.")
    max_body_bytes: int = Field(32_000_000, gt=0, description="Largest request body, bytes.")
    max_answer_bytes: int = Field(
        1_000_000_000,
        gt=0,
        description="Largest inspection answer, bytes, estimated before the run.",
    )
    max_inspection_bytes: int = Field(
        4_000_000_000,
        gt=0,
        description="Largest working memory of one inspection, bytes, estimated before the run.",
    )
    max_inspection_tokens: int = Field(
        4_096, gt=0, description="Most tokens in one inspection, if the model itself allows more."
    )
    max_batch_tokens: int = Field(
        1_024, gt=0, description="Tokens (padding counted) in one embedding batch."
    )
    max_waiting: int = Field(
        256, gt=0, description="Requests that may wait for one model in each lane."
    )
    max_waiting_tokens: int = Field(
        4_000_000,
        gt=0,
        description="Tokens of embedding requests that may wait for one model in each lane.",
    )
    interactive_inputs: int = Field(
        8,
        gt=0,
        description="Embedding requests with at most so many inputs overtake the others, unless "
        "their `priority` says otherwise.",
    )
    max_connections: int = Field(
        1_000,
        gt=0,
        description="Open connections; whoever comes beyond them is told to come later.",
    )
    request_timeout_s: float = Field(
        300.0, gt=0, description="Longest time for one request, seconds."
    )
    max_target_tokens: int = Field(
        64, gt=0, description="Tokens generated when an encoder-decoder model gets no target text."
    )
    num_threads: int | None = Field(
        None, gt=0, description="CPU threads for models; unset: all cores."
    )
    tokenizer_threads: int | None = Field(
        None, gt=0, description="Threads that tokenise for embeddings; unset: all cores, at most 8."
    )
    stall_timeout_s: float = Field(
        60.0,
        gt=0,
        description="A model that has worked so long on one batch, seconds, or on a request beyond "
        "its deadline, is given up and replaced. A text longer than `max_batch_tokens` has more "
        "time, in proportion, up to `request_timeout_s`.",
    )
    canary_interval_s: float = Field(
        15.0,
        gt=0,
        description="An idle model is tried with a short text after so many seconds.",
    )
    shutdown_timeout_s: float = Field(
        20.0,
        gt=0,
        description="Told to end, the server finishes what runs within so many seconds and "
        "answers 503 to the rest.",
    )

    # --- logs
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line that is shown."
    )
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="Form of the log lines on stderr; auto: text on a terminal, else JSON."
    )
    log_categories: Names = Field(
        (),
        validation_alias=_from("PELLUCID_LOG_CATEGORIES", "LOG_CATEGORIES"),
        description="Categories whose debug lines are shown too, comma separated "
        "(e.g. SIDECAR-SERVICE, MODELS, HUB, INFERENCE, API).",
    )

    @field_validator("data_dir", "hub_cache_dir")
    @classmethod
    def _has_a_place(cls, folder: Path | None) -> Path | None:
        """A user without a home, as in some containers, is told so before anything begins."""
        try:
            return folder and folder.expanduser()
        except RuntimeError as error:
            problem = "this user has no home folder; set HOME, or a folder that needs none"
            raise ValueError(problem) from error


def variables_of(name: str) -> tuple[str, ...]:
    """The environment variables of a setting; the first that is set wins."""
    alias = Settings.model_fields[name].validation_alias
    if isinstance(alias, AliasChoices):
        return tuple(str(choice) for choice in alias.choices)
    return (f"PELLUCID_{name.upper()}",)


def source_of(name: str) -> str:
    """Where a setting's value comes from: the variable in the environment or in .env, else its
    default."""
    for place, values in (("environment", os.environ), (".env", dotenv_values(".env"))):
        given = {variable.upper() for variable, value in values.items() if value}
        for variable in variables_of(name):
            if variable in given:
                return f"{variable} ({place})"
    return "default"
