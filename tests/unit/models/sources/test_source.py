"""Names, folders and revisions: what may be asked for, and what identifies a folder."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from pellucid.errors import (
    InvalidModelId,
    ModelLoadFailed,
    ModelNotFound,
    ModelTooLarge,
    NoLoadableWeights,
    RemoteCodeRequired,
)
from pellucid.models.backend import ModelRef
from pellucid.models.sources.default_encoder import DefaultEncoder
from pellucid.models.sources.hub import Hub
from pellucid.models.sources.hub_client import HubClient
from pellucid.models.sources.local_folder import revision_of
from pellucid.models.sources.locator import Locator
from pellucid.models.sources.names import check_hub_id, check_revision
from pellucid.models.sources.repository import RepoFile, check_index, select_files
from pellucid.models.sources.weights_header import count_parameters
from pellucid.progress import ProgressEvent
from pellucid.settings import Settings

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def safetensors(*shapes: tuple[int, ...]) -> bytes:
    """A safetensors file of float32 zeros."""
    header, offset = {}, 0
    for index, shape in enumerate(shapes):
        size = 4
        for length in shape:
            size *= length
        header[f"w{index}"] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(offset)


def write_model(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **config}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors((10, 4), (7,)))
    return folder


def locator(
    default: str = "owner/default",
    *,
    local_models_dir: Path | None = None,
    max_model_bytes: int = 10**6,
    trust_remote_code: bool = False,
) -> Locator:
    """A locator that may not ask any Hub."""
    client = HubClient(endpoint="http://127.0.0.1:1", token=None, timeout_s=1)
    hub = Hub(client, cache_dir=Path("/nonexistent"), offline=True, max_model_bytes=10**6)
    return Locator(
        hub,
        default=ModelRef(model_id=default),
        default_encoder=DefaultEncoder(),
        local_models_dir=local_models_dir,
        max_model_bytes=max_model_bytes,
        trust_remote_code=trust_remote_code,
    )


# --------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "model_id", ["gpt2", "openai-community/gpt2", "Qwen/Qwen3-0.6B", "a_b/c.d"]
)
def test_ids_of_the_hub_are_accepted(model_id: str) -> None:
    check_hub_id(model_id)


PATH_TRICKS = [
    "",
    "/",
    "a/",
    "/a",
    "a//b",
    "a/b/c",
    ".",
    "..",
    "../a",
    "a/..",
    "a/../../etc",
    "../../etc/passwd",
    "/etc",
    "/etc/passwd",
    "~",
    "~/models",
    "~root",
    "a\\b",
    "..\\a",
    "C:\\models",
    "a\0b",
    "a b",
    "a%2f..%2fb",
    "a/b?x=1",
    "a/b#c",
    "https://huggingface.co/a/b",
    "file:///etc/passwd",
    "-a/b",
    "a/b-",
    ".a/b",
    "a/b.",
    "a--b/c",
    "a\nb",
    "a/b\n",
    "é/b",
    "a" * 97,
    "\ud800",
]


@pytest.mark.parametrize("model_id", PATH_TRICKS, ids=repr)
def test_path_tricks_in_a_model_name_are_refused(model_id: str, tmp_path: Path) -> None:
    for place in (None, tmp_path):
        with pytest.raises(InvalidModelId) as refused:
            locator(local_models_dir=place).locate(ModelRef(model_id=model_id))
        refused.value.detail.encode("utf-8", "strict")  # can be sent in an answer
    with pytest.raises(InvalidModelId):
        check_hub_id(model_id)


@pytest.mark.parametrize("revision", [None, "main", "refs/pr/1", "v1.0", "release-2", COMMIT])
def test_revisions_are_accepted(revision: str | None) -> None:
    check_revision(revision, model_id="a/b")


@pytest.mark.parametrize(
    "revision",
    [
        "",
        "..",
        "../main",
        "a/../b",
        "/main",
        "main/",
        "a//b",
        ".git",
        "-x",
        "a\0",
        "a b",
        "a\\b",
        "~",
        "a" * 129,
        "refs/.hidden",
        "a?b",
        "main\n",
    ],
    ids=repr,
)
def test_path_tricks_in_a_revision_are_refused(revision: str) -> None:
    with pytest.raises(InvalidModelId):
        locator().locate(ModelRef(model_id="owner/name", revision=revision))


# --------------------------------------------------------------------------- folders


def test_requests_reach_folders_under_the_local_models_dir_only(tmp_path: Path) -> None:
    inside = write_model(tmp_path / "models" / "team" / "mine")
    outside = write_model(tmp_path / "outside")
    locate = locator(local_models_dir=tmp_path / "models").locate

    assert locate(ModelRef(model_id="team/mine")).folder == inside
    assert locate(ModelRef(model_id=str(inside))).folder == inside
    for name in (
        str(outside),
        str(tmp_path),
        str(tmp_path / "models"),
        str(inside / ".." / "mine"),
    ):
        with pytest.raises(InvalidModelId):
            locate(ModelRef(model_id=name))


def test_a_link_out_of_the_local_models_dir_is_refused(tmp_path: Path) -> None:
    outside = write_model(tmp_path / "outside")
    models = tmp_path / "models"
    models.mkdir()
    (models / "link").symlink_to(outside)
    with pytest.raises(InvalidModelId, match="leads out"):
        locator(local_models_dir=models).locate(ModelRef(model_id="link"))


def test_the_answer_does_not_tell_which_paths_exist(tmp_path: Path) -> None:
    locate = locator(local_models_dir=tmp_path).locate
    reasons = set()
    for name in ("/etc/passwd", "/no/such/file"):
        with pytest.raises(InvalidModelId) as refused:
            locate(ModelRef(model_id=name))
        reasons.add(refused.value.facts["reason"])
    assert len(reasons) == 1


def test_the_operators_own_model_may_lie_anywhere(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "anywhere")
    events: list[ProgressEvent] = []
    source = locator(str(folder)).locate(progress=events.append)
    assert (source.folder, source.model_id, source.origin) == (folder, str(folder), "local")
    assert events == [ProgressEvent("model_cached", {"model": str(folder)})]
    assert locator(str(folder)).locate(ModelRef(model_id=str(folder))) == source


def test_the_operators_folder_that_is_missing_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        locator(str(tmp_path / "gone")).locate()


def test_a_relative_folder_without_a_model_does_not_hide_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match="offline"):
        locator("gpt2").locate()
    write_model(tmp_path / "gpt2")
    assert locator("gpt2").locate().folder == tmp_path / "gpt2"


def test_another_revision_of_a_folder_is_not_there(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    revision = revision_of(folder)
    at = locator(str(folder)).locate
    assert at(ModelRef(model_id=str(folder), revision=revision)).revision == revision
    with pytest.raises(ModelNotFound):
        at(ModelRef(model_id=str(folder), revision="v2"))


def test_an_address_of_the_hub_as_default_means_the_name_in_it(tmp_path: Path) -> None:
    for address in ("https://huggingface.co/owner/name/", "http://hub.example/owner/name"):
        settings = Settings(model=address, hub_endpoint="http://hub.example/", offline=True)
        assert Locator.of(settings).default.model_id == "owner/name"


def test_a_folder_over_the_limit_is_refused_with_the_figures(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    size = (folder / "model.safetensors").stat().st_size
    with pytest.raises(ModelTooLarge) as refused:
        locator(str(folder), max_model_bytes=size - 1).locate()
    assert refused.value.facts["size_bytes"] == size
    assert locator(str(folder), max_model_bytes=size).locate().folder == folder
    assert locator(str(folder), max_model_bytes=1).estimate().weights_bytes == size


def test_the_default_encoder_is_under_the_same_limit() -> None:
    with pytest.raises(ModelTooLarge, match=r"90\.9 MB"):
        locator(max_model_bytes=80_000_000).locate(ModelRef(model_id="all-MiniLM-L6-v2"))


def test_a_folder_is_estimated_from_its_headers(tmp_path: Path) -> None:
    estimate = locator(str(write_model(tmp_path / "m"))).estimate()
    assert (estimate.num_parameters, estimate.download_bytes, estimate.origin) == (47, 0, "local")


# ------------------------------------------------------------------- what identifies a folder


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_link_to_nothing_is_named(name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "here")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "elsewhere" / name)
    ref = ModelRef(model_id="here")
    for ask in (
        locator(local_models_dir=tmp_path).resolve,
        locator(local_models_dir=tmp_path).estimate,
    ):
        with pytest.raises(ModelLoadFailed, match=f"{name} is a link to a file that is not there"):
            ask(ref)


def test_the_fingerprint_stays_while_nothing_changes(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    copy = write_model(tmp_path / "copy")
    first = revision_of(folder)
    assert first == revision_of(folder) == revision_of(copy)
    assert first.startswith("local-")
    assert len(first) == len("local-") + 12


@pytest.mark.parametrize("change", ["small file", "new file", "removed file", "module", "renamed"])
def test_the_fingerprint_changes_with_the_content(change: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    before = revision_of(folder)
    if change == "small file":
        (folder / "tokenizer.json").write_text("[]")  # of the same size
    elif change == "new file":
        (folder / "merges.txt").write_text("")
    elif change == "removed file":
        (folder / "tokenizer.json").unlink()
    elif change == "module":
        (folder / "1_Pooling" / "config.json").write_text("[]")
    else:
        (folder / "tokenizer.json").rename(folder / "tokenizes.json")
    assert revision_of(folder) != before


def test_the_fingerprint_of_large_weights_follows_time_and_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pellucid.models.sources.local_folder._SMALL_BYTES", 100)
    folder = write_model(tmp_path / "m")
    weights = folder / "model.safetensors"
    first = revision_of(folder)
    stamp = weights.stat().st_mtime_ns
    os.utime(weights, ns=(stamp, stamp + 1))
    second = revision_of(folder)
    weights.write_bytes(weights.read_bytes().replace(b'"w0"', b'"v0"'))
    os.utime(weights, ns=(stamp, stamp))
    assert len({first, second, revision_of(folder)}) == 3


def test_a_snapshot_of_the_hub_cache_keeps_its_commit(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "models--a--b" / "snapshots" / COMMIT)
    assert revision_of(folder) == COMMIT


# ------------------------------------------------------------------------ which files are needed


def select(*paths: str, with_code: bool = False) -> tuple[set[str], set[str]]:
    files = [RepoFile(path=path, size=1) for path in paths]
    selection = select_files(files, model_id="a/b", with_code=with_code)
    return ({file.path for file in selection.small}, {file.path for file in selection.weights})


def test_safetensors_are_preferred_and_nothing_comes_twice() -> None:
    small, weights = select(
        "config.json",
        "tokenizer.json",
        "vocab.txt",
        "spiece.model",
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "2_Dense/pytorch_model.bin",
        "model.safetensors",
        "pytorch_model.bin",
        "tf_model.h5",
        "flax_model.msgpack",
        "rust_model.ot",
        "model.gguf",
        "onnx/model.onnx",
        "openvino/openvino_model.bin",
        "README.md",
        "training_args.bin",
        "optimizer.pt",
        "modeling_x.py",
        ".gitattributes",
    )
    assert weights == {"model.safetensors", "2_Dense/model.safetensors"}
    assert small == {
        "config.json",
        "tokenizer.json",
        "vocab.txt",
        "spiece.model",
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
    }


def test_code_comes_only_where_it_is_trusted() -> None:
    files = ("config.json", "model.safetensors", "modeling_x.py", "lib/x.py", "../y.py")
    assert "modeling_x.py" not in select(*files)[0]
    assert {"modeling_x.py", "lib/x.py"} == select(*files, with_code=True)[0] - {"config.json"}


@pytest.mark.parametrize("stem", ["model", "model.safetensors"])
def test_shards_come_with_their_index(stem: str) -> None:
    shards = {f"{stem}-0000{number}-of-00002.safetensors" for number in (1, 2)}
    small, weights = select("model.safetensors.index.json", "pytorch_model.bin", *shards)
    assert weights == shards
    assert "model.safetensors.index.json" in small


def test_incomplete_shards_give_way_to_a_complete_format() -> None:
    files = ["model.safetensors.index.json", "model-00001-of-00002.safetensors"]
    small, weights = select(*files, "pytorch_model.bin")
    assert weights == {"pytorch_model.bin"}
    assert "model.safetensors.index.json" not in small
    with pytest.raises(NoLoadableWeights):
        select(*files)


def test_shards_of_pytorch_are_taken() -> None:
    shards = {f"pytorch_model-0000{i}-of-00003.bin" for i in (1, 2, 3)}
    assert select("pytorch_model.bin.index.json", *shards)[1] == shards


@pytest.mark.parametrize(
    "paths",
    [
        ["config.json", "model.gguf"],
        ["config.json", "adapter_model.safetensors"],
        ["config.json", "tf_model.h5", "onnx/model.onnx"],
        ["config.json", "2_Dense/model.safetensors"],
        ["config.json", "../model.safetensors", "a/../model.safetensors"],
    ],
    ids=lambda paths: paths[-1],
)
def test_a_repository_without_loadable_weights_says_what_it_has(paths: list[str]) -> None:
    with pytest.raises(NoLoadableWeights) as refused:
        select(*paths)
    assert paths[-1] in refused.value.facts["found"]


def test_the_index_decides_which_shards_are_needed() -> None:
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    names += [f"ema_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    files = [RepoFile(path=name, size=1) for name in ["model.safetensors.index.json", *names]]
    selection = select_files(files, model_id="a/b", with_code=False)
    index = {"weight_map": {"x": names[0], "y": names[1]}}
    checked = check_index(selection, {"model.safetensors.index.json": index}, model_id="a/b")
    assert [file.path for file in checked.weights] == names[:2]
    index["weight_map"]["z"] = "model-00003-of-00003.safetensors"
    with pytest.raises(NoLoadableWeights, match="no model-00003-of-00003"):
        check_index(selection, {"model.safetensors.index.json": index}, model_id="a/b")


# ------------------------------------------------------------------------------- code of its own


@pytest.mark.parametrize(
    ("config", "is_refused"),
    [
        ({}, False),
        ({"model_type": "bert", "auto_map": {"AutoModel": "m.M"}}, False),  # known: not needed
        ({"model_type": "their_own", "auto_map": {"AutoModel": "m.M"}}, True),
        ({"model_type": None, "auto_map": {"AutoModel": "m.M"}}, True),
        ({"model_type": "their_own"}, False),  # loading will say that it is unknown
    ],
)
def test_code_of_a_model_is_refused_unless_trusted(
    config: dict[str, object], is_refused: bool, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "m", **config)
    if is_refused:
        with pytest.raises(RemoteCodeRequired):
            locator(str(folder)).locate()
    else:
        assert locator(str(folder)).locate().folder == folder
    assert locator(str(folder), trust_remote_code=True).locate().folder == folder


def test_foreign_pipeline_steps_leave_the_transformer_to_be_inspected(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    modules = [{"idx": 0, "path": "", "type": "custom_st.Transformer"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    assert locator(str(folder)).locate().folder == folder


# ------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize(
    "content",
    [b"", b"1234567", b"\xff" * 8, b"\x09" + bytes(7) + b"{}", b"\x02" + bytes(7) + b"[]"],
)
def test_damaged_headers_give_no_number_of_parameters(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert count_parameters([path]) is None
