"""What a model's files say about its tokenizer: the tokenizer itself, its limits, special ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import normalizers
from transformers import AutoTokenizer

from pellucid.errors import ModelLoadFailed, PellucidError, RemoteCodeRequired

# Tokenizers without a limit say 10^30; nothing real is beyond this.
_NO_LIMIT = 1_000_000_000
# Families whose table of positions begins at padding_idx + 1, so that it holds so many fewer.
_POSITIONS_AFTER_PADDING = {
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "xmod", "camembert"),
    *("mpnet", "longformer", "data2vec-text", "ibert", "esm", "luke", "mluke", "lilt", "markuplm"),
}


def load_fast_tokenizer(folder: Path, *, model_id: str, trust_remote_code: bool) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=trust_remote_code, local_files_only=True
        )
    except PellucidError:
        raise
    except Exception as error:  # the library raises nearly every kind
        if "trust_remote_code" in str(error) and not trust_remote_code:
            raise RemoteCodeRequired(model_id=model_id) from error
        raise ModelLoadFailed(
            model_id=model_id, reason=f"its tokenizer cannot be loaded ({error})"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelLoadFailed(
            model_id=model_id,
            reason=f"its tokenizer ({type(tokenizer).__name__}) has no fast form, "
            "so tokens could not be placed in the text",
        )
    # Without files the library makes an empty tokenizer, which knows nothing but special tokens.
    fast = tokenizer.backend_tokenizer
    if fast.get_vocab_size() <= len(fast.get_added_tokens_decoder()):
        raise ModelLoadFailed(model_id=model_id, reason="its tokenizer files are missing")
    return tokenizer


def lowercase_first(fast: Any) -> None:
    """Lower-case before everything else, unless the tokenizer does already."""
    present = fast.normalizer
    if present is not None and "Lowercase" in present.__getstate__().decode():
        return
    steps = [normalizers.Lowercase(), *([present] if present is not None else [])]
    fast.normalizer = normalizers.Sequence(steps)


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that stand for no text. The unknown token stands for text, unless it has another role."""
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder().items()
    special = {token_id for token_id, token in added if token.special}
    special.update(tokenizer.all_special_ids)
    roles = ("bos", "eos", "pad", "cls", "sep", "mask")
    framing = {getattr(tokenizer, f"{role}_token_id", None) for role in roles}
    if tokenizer.unk_token_id not in framing:
        special.discard(tokenizer.unk_token_id)
    return frozenset(special)


def pad_id(tokenizer: Any, *, vocab_size: int) -> int:
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    # Some tokenizers have a padding token that their model has no row for.
    return next((c for c in candidates if c is not None and 0 <= c < vocab_size), 0)


def decoder_start_id(config: Any, *, folder: Path) -> int | None:
    """The token before a decoder's first one, from the configuration or that of generation."""
    if not getattr(config, "is_encoder_decoder", False):
        return None
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    candidates = (
        getattr(config, "decoder_start_token_id", None),
        generation.get("decoder_start_token_id"),
        getattr(config, "bos_token_id", None),
    )
    return next((c for c in candidates if c is not None), None)


def finite_length(length: Any) -> int | None:
    return int(length) if length is not None and 0 < length < _NO_LIMIT else None


def max_positions(config: Any) -> int | None:
    """How many tokens the model has positions for; None without such a table (T5, XLNet)."""
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    positions = finite_length(getattr(text_config, "max_position_embeddings", None))
    if positions is not None and text_config.model_type in _POSITIONS_AFTER_PADDING:
        positions -= (text_config.pad_token_id or 0) + 1
    return positions
