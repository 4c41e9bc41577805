"""Which files of a repository a model needs: settings, tokenizer, and one format of weights."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from pellucid.errors import NoLoadableWeights

# What transformers and sentence-transformers read besides weights, by file name.
_SETTINGS_AND_TOKENIZER = (
    "*config.json",  # config, generation_config, tokenizer_config, sentence_*_config, Pooling's
    "config_sentence_transformers.json",
    "modules.json",
    "router_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "vocab-*.json",
    "merges.txt",
    "*.model",  # SentencePiece: spiece.model, tokenizer.model, sentencepiece.bpe.model
    "*.spm",
    "*.tiktoken",
    "tekken.json",
    "bpe.codes",
    "dict.txt",
    "entity_vocab.json",
    "normalizer.json",
    "chat_template.j*",
    "*.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
# sentence-transformers numbers its modules' folders: 0_Transformer, 1_Pooling, query_0_Dense.
_MODULE_FOLDER = re.compile(r"(?:[A-Za-z]+_)?\d+_\w+")
_SAFE_NAME = re.compile(r"(?!\.)[A-Za-z0-9._+-]+")
_WEIGHTS_LIKE = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|onnx|gguf|ggml|ot|tflite|npz|pkl)"
)
_FORMATS = (("model.safetensors", "safetensors"), ("pytorch_model.bin", "bin"))
_MAX_SHOWN = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class RepoFile:
    """One file of a repository at one commit."""

    path: str  # with forward slashes, relative to the repository
    size: int
    sha256: str | None = None  # of files kept in LFS
    git_sha1: str | None = None  # git's blob id, of the others

    @property
    def blob_name(self) -> str | None:
        """Its name in the Hub cache: the content's hash."""
        return self.sha256 or self.git_sha1


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The files to have before a model is loaded."""

    small: tuple[RepoFile, ...]
    weights: tuple[RepoFile, ...]

    @property
    def files(self) -> tuple[RepoFile, ...]:
        return self.small + self.weights

    @property
    def weights_bytes(self) -> int:
        return sum(file.size for file in self.weights)

    @property
    def index_paths(self) -> tuple[str, ...]:
        return tuple(file.path for file in self.small if file.path.endswith(".index.json"))


def select_files(files: Iterable[RepoFile], *, model_id: str, with_code: bool) -> Selection:
    """The files that loading needs, and no second format of the same weights.

    ``with_code`` adds Python files. Raises NoLoadableWeights, naming what was there instead.
    """
    by_folder: dict[str, dict[str, RepoFile]] = defaultdict(dict)
    listed = tuple(files)
    for file in listed:
        folder, _, name = file.path.rpartition("/")
        is_near = not folder or _MODULE_FOLDER.fullmatch(folder)
        if (is_near and _SAFE_NAME.fullmatch(name)) or (with_code and _is_code(file.path)):
            by_folder[folder][name] = file
    small: list[RepoFile] = []
    weights: list[RepoFile] = []
    for _, by_name in sorted(by_folder.items()):
        chosen, index_name = _weights_of(by_name)
        weights += chosen
        small += [
            file
            for name, file in sorted(by_name.items())
            if _is_small(name, index_name=index_name) or (with_code and name.endswith(".py"))
        ]
    if not any(_is_main(file.path) for file in weights):
        raise NoLoadableWeights(model_id=model_id, found=_found(listed))
    return Selection(small=tuple(small), weights=tuple(weights))


def check_index(selection: Selection, indexes: Mapping[str, object], *, model_id: str) -> Selection:
    """The selection with exactly the shards that its indexes name.

    ``indexes``: parsed ``*.index.json`` by path. Raises NoLoadableWeights when a shard is missing.
    """
    if not indexes:
        return selection
    chosen = {file.path: file for file in selection.weights}
    sharded: set[str] = set()
    for path, index in indexes.items():
        folder = path.rpartition("/")[0]
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise NoLoadableWeights(model_id=model_id, found=f"{path} without a weight_map")
        for shard in set(weight_map.values()):
            shard_path = f"{folder}/{shard}" if folder else str(shard)
            if shard_path not in chosen:
                raise NoLoadableWeights(model_id=model_id, found=f"{path}, but no {shard_path}")
            sharded.add(shard_path)
    folders = {path.rpartition("/")[0] for path in indexes}
    kept = tuple(
        file
        for path, file in chosen.items()
        if path in sharded or path.rpartition("/")[0] not in folders
    )
    return replace(selection, weights=kept)


def _weights_of(by_name: Mapping[str, RepoFile]) -> tuple[list[RepoFile], str | None]:
    """One format of the weights in one folder, and the name of the index of its shards."""
    for whole, suffix in _FORMATS:
        if whole in by_name:
            return [by_name[whole]], None
        index_name = f"{whole}.index.json"
        shards = _shards_of(by_name, suffix=suffix)
        if index_name in by_name and shards:
            return shards, index_name
    return [], None


def _shards_of(by_name: Mapping[str, RepoFile], *, suffix: str) -> list[RepoFile]:
    """The files of all complete sets ``<stem>-00001-of-00003.<suffix>``."""
    pattern = re.compile(rf"(?P<stem>.*model.*)-(\d+)-of-(?P<total>\d+)\.{suffix}")
    sets: dict[tuple[str, str], list[RepoFile]] = defaultdict(list)
    for name in sorted(by_name):
        if match := pattern.fullmatch(name):
            sets[match["stem"], match["total"]].append(by_name[name])
    complete = [shards for (_, total), shards in sets.items() if len(shards) == int(total)]
    return [shard for shards in complete for shard in shards]


def _is_small(name: str, *, index_name: str | None) -> bool:
    if name.endswith(".index.json"):
        return name == index_name  # the index of a format that is not loaded would mislead
    return any(fnmatchcase(name, pattern) for pattern in _SETTINGS_AND_TOKENIZER)


def _is_main(path: str) -> bool:
    """Whether weights belong to the transformer itself rather than to a Dense layer after it."""
    folder = path.rpartition("/")[0]
    return not folder or re.fullmatch(r"(?:[A-Za-z]+_)?0_\w+", folder) is not None


def _is_code(path: str) -> bool:
    parts = path.split("/")
    return path.endswith(".py") and all(_SAFE_NAME.fullmatch(part) for part in parts)


def _found(files: Iterable[RepoFile]) -> str:
    names = sorted(file.path for file in files if _WEIGHTS_LIKE.fullmatch(file.path))
    if not names:
        return "no file that looks like weights"
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(names[:_MAX_SHOWN]) + more
