"""Downloads from the Hub: every answer it can give, broken connections, the cache afterwards."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hub_stand_in import HubStandIn, Repo
from pellucid.errors import (
    DownloadFailed,
    HubUnreachable,
    InvalidModelId,
    ModelGatedNotAccepted,
    ModelGatedNoToken,
    ModelLoadFailed,
    ModelNotFound,
    ModelOffline,
    ModelPrivate,
    ModelTooLarge,
    ModelUnavailable,
    NoLoadableWeights,
    RemoteCodeRequired,
    WeightsCorrupt,
)
from pellucid.models.backend import ModelRef
from pellucid.models.sources.download import DownloadMeter
from pellucid.models.sources.hub import Hub
from pellucid.models.sources.hub_client import HubClient
from pellucid.models.sources.locator import Locator
from pellucid.models.sources.source import ModelSource
from pellucid.progress import ProgressEvent
from pellucid.settings import Settings
from unit.models.sources.test_source import safetensors

MODEL_ID = "owner/name"
REF = ModelRef(model_id=MODEL_ID)
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.models.sources.download._PAUSE_S", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def repo(hub: HubStandIn) -> Repo:
    return hub.add_files(MODEL_ID, files_of_a_model())


def files_of_a_model(**config: object) -> dict[str, bytes]:
    return {
        "config.json": json.dumps({"model_type": "bert", **config}).encode(),
        "tokenizer.json": b'{"version": "1.0"}',
        "modules.json": b"[]",
        "1_Pooling/config.json": b"{}",
        WEIGHTS: safetensors((300, 300)),
        "pytorch_model.bin": bytes(1000),
        "onnx/model.onnx": bytes(1000),
        "README.md": b"# a model",
    }


def client_of(
    hub: HubStandIn,
    cache_dir: Path,
    *,
    token: str | None = None,
    offline: bool = False,
    timeout_s: float = 5.0,
    max_model_bytes: int = 10**9,
    trust_remote_code: bool = False,
) -> Hub:
    return Hub(
        HubClient(endpoint=hub.endpoint, token=token, timeout_s=timeout_s),
        cache_dir=cache_dir,
        offline=offline,
        max_model_bytes=max_model_bytes,
        trust_remote_code=trust_remote_code,
    )


def assert_complete(source: ModelSource, repo: Repo) -> None:
    """Every file that is needed is there byte for byte, and no other."""
    wanted = set(repo.files) - {"pytorch_model.bin", "onnx/model.onnx", "README.md"}
    found = {
        path.relative_to(source.folder).as_posix()
        for path in source.folder.rglob("*")
        if path.is_file()
    }
    assert found == wanted
    for path in wanted:
        assert (source.folder / path).read_bytes() == repo.files[path]


# ------------------------------------------------------------------------------- the plain way


def test_a_model_is_downloaded_once(hub: HubStandIn, repo: Repo, tmp_path: Path) -> None:
    client = client_of(hub, tmp_path)
    events: list[ProgressEvent] = []
    source = client.fetch(REF, progress=events.append)
    assert (source.model_id, source.revision, source.origin) == (MODEL_ID, repo.commit, "hub")
    assert_complete(source, repo)
    assert events[0] == ProgressEvent("download_started", {"model": MODEL_ID})
    assert {event.type for event in events[1:]} == {"download_progress"}
    size = len(repo.files[WEIGHTS])
    assert events[-1].data == {"model": MODEL_ID, "bytes": size, "total": size, "eta": 0.0}

    events.clear()
    hub.requests.clear()
    again = client.fetch(REF, progress=events.append)
    assert (again.folder, again.origin) == (source.folder, "cache")
    assert events == [ProgressEvent("model_cached", {"model": MODEL_ID})]
    assert hub.requested("/resolve/") == []


def test_a_commit_in_the_cache_needs_no_request(
    hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    client = client_of(hub, tmp_path)
    client.fetch(REF)
    hub.requests.clear()
    at_commit = ModelRef(model_id=MODEL_ID, revision=repo.commit)
    assert client.fetch(at_commit).origin == "cache"
    assert client.resolve(at_commit) == at_commit
    assert client.estimate(at_commit).download_bytes == 0
    assert hub.requests == []


def test_a_branch_is_resolved_to_its_commit(hub: HubStandIn, repo: Repo, tmp_path: Path) -> None:
    repo.revisions.add("refs/pr/1")
    ref = ModelRef(model_id=MODEL_ID, revision="refs/pr/1")
    assert client_of(hub, tmp_path).resolve(ref).revision == repo.commit


def test_a_new_commit_fetches_only_what_changed(
    hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    client = client_of(hub, tmp_path)
    first = client.fetch(REF)
    repo.files["tokenizer.json"] = b'{"version": "2.0"}'
    hub.requests.clear()
    second = client.fetch(REF)
    assert second.revision != first.revision
    assert_complete(second, repo)
    assert [request.path.rpartition("/")[2] for request in hub.requested("/resolve/")] == [
        "tokenizer.json"
    ]


def test_the_real_loader_reads_the_folder_with_the_network_off(
    hub: HubStandIn, tmp_path: Path
) -> None:
    import torch
    import transformers

    import tiny_models

    folder = tiny_models.build("bert", tmp_path / "bert")
    hub.add("tiny/bert", folder)
    fetched = client_of(hub, tmp_path / "cache").fetch(ModelRef(model_id="tiny/bert"))
    hub.status = 500
    load = transformers.AutoModel.from_pretrained
    input_ids = torch.tensor([[1, 2, 3]])
    expected, actual = (
        load(path, local_files_only=True).eval()(input_ids).last_hidden_state
        for path in (folder, fetched.folder)
    )
    assert torch.equal(expected, actual)
    tokenizer = transformers.AutoTokenizer.from_pretrained(fetched.folder, local_files_only=True)
    assert tokenizer("fox")["input_ids"]


def test_the_hubs_own_library_shares_the_cache(
    hub: HubStandIn, repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    ours = client_of(hub, tmp_path).fetch(REF)
    patterns = ["*.json", WEIGHTS]
    theirs = huggingface_hub.snapshot_download(
        MODEL_ID, cache_dir=tmp_path, local_files_only=True, allow_patterns=patterns
    )
    assert Path(theirs) == ours.folder

    other = hub.add_files("owner/other", files_of_a_model())
    huggingface_hub.snapshot_download(
        "owner/other",
        cache_dir=tmp_path,
        endpoint=hub.endpoint,
        token=False,
        allow_patterns=patterns,
    )
    huggingface_hub.close_session()
    source = client_of(hub, tmp_path, offline=True).fetch(ModelRef(model_id="owner/other"))
    assert (source.revision, source.origin) == (other.commit, "cache")


def test_callers_at_the_same_time_share_one_download(
    hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(4) as threads:
        fetches = [threads.submit(client_of(hub, tmp_path).fetch, REF) for _ in range(4)]
        sources = [fetch.result() for fetch in fetches]
    assert len({source.folder for source in sources}) == 1
    assert_complete(sources[0], repo)
    assert len(hub.requested(WEIGHTS)) == 1


def test_a_file_system_without_links_works(
    hub: HubStandIn, repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    client = client_of(hub, tmp_path)
    assert_complete(client.fetch(REF), repo)
    assert client.fetch(REF).origin == "cache"


def test_the_locator_of_the_settings_uses_their_hub(
    hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    repo.gated, repo.readers = True, {"secret"}
    settings = Settings(
        model=MODEL_ID, hub_endpoint=hub.endpoint, hub_cache_dir=tmp_path, hf_token="secret"
    )
    locator = Locator.of(settings)
    assert locator.estimate().download_bytes > 0
    assert_complete(locator.locate(), repo)
    assert locator.resolve() == ModelRef(model_id=MODEL_ID, revision=repo.commit)


def test_nothing_is_printed(hub: HubStandIn, repo: Repo, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pellucid.models.sources.hub import Hub;"
        "from pellucid.models.sources.hub_client import HubClient;"
        "from pellucid.models.backend import ModelRef;"
        "hub = Hub(HubClient(endpoint=sys.argv[1], token=None, timeout_s=5),"
        " cache_dir=Path(sys.argv[2]), max_model_bytes=10**9);"
        "hub.fetch(ModelRef(model_id='owner/name'))"
    )
    environment = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "0", "HF_TOKEN": "stored"}
    ran = subprocess.run(
        [sys.executable, "-c", code, hub.endpoint, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    # A token in the environment is the settings' to read: nothing below sends it by itself.
    assert {request.token for request in hub.requests} == {None}


# ---------------------------------------------------------------------------- who may read what


@pytest.mark.parametrize(
    ("token", "expected"),
    [(None, ModelGatedNoToken), ("stranger", ModelGatedNotAccepted), ("reader", None)],
)
def test_gated_repositories(
    token: str | None,
    expected: type[ModelUnavailable] | None,
    hub: HubStandIn,
    repo: Repo,
    tmp_path: Path,
) -> None:
    repo.gated, repo.readers = True, {"reader"}
    client = client_of(hub, tmp_path, token=token)
    if expected is None:
        assert_complete(client.fetch(REF), repo)
        return
    events: list[ProgressEvent] = []
    with pytest.raises(expected) as refused:
        client.fetch(REF, progress=events.append)
    assert f"{hub.endpoint}/{MODEL_ID}" in refused.value.detail
    assert events == []
    assert client.estimate(REF).weights_bytes > 0  # sizes are public


@pytest.mark.parametrize(
    ("token", "expected"),
    [(None, ModelNotFound), ("stranger", ModelPrivate), ("reader", None)],
)
def test_private_repositories(
    token: str | None,
    expected: type[ModelUnavailable] | None,
    hub: HubStandIn,
    repo: Repo,
    tmp_path: Path,
) -> None:
    repo.private, repo.readers = True, {"reader"}
    client = client_of(hub, tmp_path, token=token)
    if expected is None:
        assert_complete(client.fetch(REF), repo)
        return
    for ask in (client.fetch, client.estimate, client.resolve):
        with pytest.raises(expected, match="HF_TOKEN"):
            ask(REF)


def test_an_invalid_token_is_not_taken_for_a_missing_model(
    hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    hub.token_unknown = True
    with pytest.raises(ModelPrivate):
        client_of(hub, tmp_path, token="expired").fetch(REF)


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    repo.gated, repo.readers, hub.redirects_files = True, {"reader"}, True
    assert_complete(client_of(hub, tmp_path, token="reader").fetch(REF), repo)
    assert {(r.host, r.token) for r in hub.requested("/cdn/")} == {("localhost", None)}
    assert {r.token for r in hub.requests if r.host == "127.0.0.1"} == {"reader"}


@pytest.mark.parametrize("token", [None, "any"])
def test_a_missing_model_and_a_missing_revision(
    token: str | None, hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    client = client_of(hub, tmp_path, token=token)
    missing = ModelRef(model_id="owner/missing")
    at_missing = ModelRef(model_id=MODEL_ID, revision="v9")
    for ask in (client.fetch, client.estimate, client.resolve):
        with pytest.raises(ModelNotFound, match="owner/missing at revision main"):
            ask(missing)
        with pytest.raises(ModelNotFound, match="owner/name at revision v9"):
            ask(at_missing)


def test_a_name_with_path_tricks_is_not_asked_for(hub: HubStandIn, tmp_path: Path) -> None:
    client = client_of(hub, tmp_path)
    for ask in (client.fetch, client.estimate, client.resolve):
        with pytest.raises(InvalidModelId):
            ask(ModelRef(model_id="../x"))
        with pytest.raises(InvalidModelId):
            ask(ModelRef(model_id="a/b", revision="../x"))
    assert hub.requests == []


# ------------------------------------------------------------------------------------- too large


def test_too_large_is_refused_before_a_byte_of_weights(
    hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    size = len(repo.files[WEIGHTS])
    with pytest.raises(ModelTooLarge) as refused:
        client_of(hub, tmp_path, max_model_bytes=size - 1).fetch(REF)
    assert refused.value.facts["size_bytes"] == size
    assert refused.value.facts["limit_bytes"] == size - 1
    assert hub.requested("/resolve/") == []
    assert client_of(hub, tmp_path, max_model_bytes=size).fetch(REF).origin == "hub"
    for offline in (False, True):  # a limit holds for what is in the cache as well
        with pytest.raises(ModelTooLarge):
            client_of(hub, tmp_path, max_model_bytes=size - 1, offline=offline).fetch(REF)


def test_the_headers_count_when_they_announce_more_than_the_files(
    hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    repo.num_parameters = {"F32": 10**9, "BF16": 10**9}
    with pytest.raises(ModelTooLarge) as refused:
        client_of(hub, tmp_path, max_model_bytes=5 * 10**9).fetch(REF)
    assert refused.value.facts["size_bytes"] == 6 * 10**9


def test_an_estimate_downloads_nothing(hub: HubStandIn, repo: Repo, tmp_path: Path) -> None:
    client = client_of(hub, tmp_path, max_model_bytes=1)  # and does not refuse
    size = len(repo.files[WEIGHTS])
    small = sum(len(repo.files[p]) for p in repo.files if p.endswith(".json"))
    estimate = client.estimate(REF)
    assert (estimate.weights_bytes, estimate.download_bytes) == (size, size + small)
    assert (estimate.num_parameters, estimate.origin) == (None, "hub")
    assert (estimate.model_id, estimate.revision) == (MODEL_ID, repo.commit)
    repo.num_parameters = {"F32": 90_000}
    estimate = client.estimate(REF)
    assert (estimate.weights_bytes, estimate.num_parameters) == (360_000, 90_000)
    assert hub.requested("/resolve/") == []
    assert not any(tmp_path.rglob("blobs/*"))

    client_of(hub, tmp_path).fetch(REF)
    assert client.estimate(REF).download_bytes == 0
    offline = client_of(hub, tmp_path, offline=True).estimate(REF)
    assert (offline.num_parameters, offline.origin) == (90_000, "cache")


def test_a_full_disk_is_told_before_the_download(
    hub: HubStandIn, repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("pellucid.models.sources.hub.shutil.disk_usage", lambda path: usage)
    with pytest.raises(DownloadFailed, match="100 bytes free"):
        client_of(hub, tmp_path).fetch(REF)
    assert hub.requested(WEIGHTS) == []


def test_a_cache_that_cannot_be_written_is_told(
    hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadFailed, match="Not a directory"):
        client_of(hub, tmp_path / "file").fetch(REF)


# -------------------------------------------------------------------------- offline, unreachable


def test_offline_uses_the_cache_and_nothing_else(
    hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    offline = client_of(hub, tmp_path, offline=True)
    for ask in (offline.fetch, offline.estimate, offline.resolve):
        with pytest.raises(ModelOffline):
            ask(REF)
    assert hub.requests == []
    fetched = client_of(hub, tmp_path).fetch(REF)
    hub.requests.clear()
    assert offline.fetch(REF).folder == fetched.folder
    assert offline.resolve(REF).revision == repo.commit
    assert hub.requests == []
    with pytest.raises(ModelOffline):
        offline.fetch(ModelRef(model_id=MODEL_ID, revision="v2"))


@pytest.fixture(params=["refuses", "hangs", "status 500", "status 503", "status 429", "no hub"])
def trouble(request: pytest.FixtureRequest) -> str:
    """Ways in which a Hub does not answer."""
    return str(request.param)


def make_trouble(hub: HubStandIn, trouble: str) -> None:
    if trouble == "refuses":
        hub.close()
    elif trouble == "hangs":
        hub.hangs = True
    elif trouble == "no hub":
        hub.status = 200  # an answer of some other kind, as a captive portal gives
    else:
        hub.status = int(trouble.split()[1])


def test_a_hub_that_does_not_answer_is_told_within_the_time(
    trouble: str, hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    make_trouble(hub, trouble)
    client = client_of(hub, tmp_path, timeout_s=0.2)
    for ask in (client.fetch, client.estimate, client.resolve):
        with pytest.raises(HubUnreachable) as refused:
            ask(REF)
    if trouble == "hangs":
        assert "within 0.2 s" in refused.value.detail
    if trouble.startswith("status"):
        assert trouble in refused.value.detail


def test_a_hub_that_does_not_answer_leaves_the_cache(
    trouble: str,
    hub: HubStandIn,
    repo: Repo,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fetched = client_of(hub, tmp_path).fetch(REF)
    make_trouble(hub, trouble)
    client = client_of(hub, tmp_path, timeout_s=0.2)
    events: list[ProgressEvent] = []
    with caplog.at_level(logging.WARNING):
        source = client.fetch(REF, progress=events.append)
    assert (source.folder, source.origin) == (fetched.folder, "cache")
    assert [event.type for event in events] == ["model_cached"]
    assert "taken from the cache" in caplog.text
    assert client.resolve(REF).revision == repo.commit
    assert client.estimate(REF).download_bytes == 0


# -------------------------------------------------------------------------------- broken downloads


def test_a_break_is_mended_within_one_call(hub: HubStandIn, repo: Repo, tmp_path: Path) -> None:
    repo.break_off(WEIGHTS, at=100_000)
    assert_complete(client_of(hub, tmp_path).fetch(REF), repo)
    starts = [request.range_start for request in hub.requested(WEIGHTS)]
    assert starts == [None, 100_000]


@pytest.mark.parametrize("path", [WEIGHTS, "tokenizer.json"])
def test_a_download_that_broke_off_is_resumed_by_the_next_call(
    path: str, hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    at = len(repo.files[path]) // 2
    repo.break_off(path, at=at, times=None)
    with pytest.raises(DownloadFailed) as refused:
        client_of(hub, tmp_path).fetch(REF)
    assert refused.value.facts["received_bytes"] == at
    assert refused.value.facts["size_bytes"] == len(repo.files[path])
    assert refused.value.facts["file"] == path

    offline = client_of(hub, tmp_path, offline=True)  # what is there is not taken for a model
    with pytest.raises(ModelOffline):
        offline.fetch(REF)

    repo.mend()
    hub.requests.clear()
    events: list[ProgressEvent] = []
    source = client_of(hub, tmp_path).fetch(REF, progress=events.append)
    assert_complete(source, repo)
    assert [request.range_start for request in hub.requested(path)] == [at]
    if path == WEIGHTS:
        told = [event.data["bytes"] for event in events if event.type == "download_progress"]
        assert told[0] > at
        assert told[-1] == len(repo.files[path])
    assert offline.fetch(REF).folder == source.folder


def test_it_gives_up_only_when_nothing_more_comes(
    hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    repo.break_off(WEIGHTS, at=1000, times=None)
    with pytest.raises(DownloadFailed):
        client_of(hub, tmp_path).fetch(REF)
    starts = [request.range_start for request in hub.requested(WEIGHTS)]
    assert starts == [None, 1000, 1000, 1000]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_file_that_is_not_given_fails_the_download(
    status: int, hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    repo.fail(WEIGHTS, status)
    with pytest.raises(DownloadFailed, match=f"status {status}"):
        client_of(hub, tmp_path).fetch(REF)
    repo.mend()
    assert_complete(client_of(hub, tmp_path).fetch(REF), repo)


def test_a_hub_that_hangs_within_a_file_fails_the_download(
    hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    def hang_when_weights_begin(event: ProgressEvent) -> None:
        if event.type == "download_started":
            hub.hangs = True

    client = client_of(hub, tmp_path, timeout_s=0.2)
    with pytest.raises(DownloadFailed, match=r"within 0\.2 s"):
        client.fetch(REF, progress=hang_when_weights_begin)
    hub.hangs = False
    assert_complete(client.fetch(REF), repo)


def test_a_server_without_ranges_is_read_from_the_start(
    hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    repo.break_off(WEIGHTS, at=1000)
    hub.ignores_ranges = True
    assert_complete(client_of(hub, tmp_path).fetch(REF), repo)


@pytest.mark.parametrize("path", [WEIGHTS, "tokenizer.json"])
def test_damaged_bytes_are_thrown_away(
    path: str, hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    repo.corrupt(path)
    for _ in range(2):
        with pytest.raises(WeightsCorrupt) as refused:
            client_of(hub, tmp_path).fetch(REF)
        assert refused.value.facts["file"] == path
    assert not any(tmp_path.rglob("*.partial"))
    with pytest.raises(ModelOffline):
        client_of(hub, tmp_path, offline=True).fetch(REF)
    repo.mend()
    assert_complete(client_of(hub, tmp_path).fetch(REF), repo)


@pytest.mark.parametrize("damage", ["same size", "too long"])
def test_a_partial_file_that_was_damaged_is_started_over(
    damage: str, hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    repo.break_off(WEIGHTS, at=1000, times=None)
    with pytest.raises(DownloadFailed):
        client_of(hub, tmp_path).fetch(REF)
    (partial,) = tmp_path.rglob("*.partial")
    partial.write_bytes(b"x" * (1000 if damage == "same size" else 10**6))
    repo.mend()
    assert_complete(client_of(hub, tmp_path).fetch(REF), repo)


@pytest.mark.parametrize("damage", ["cut", "gone", "blob gone"])
def test_a_file_missing_from_the_cache_is_fetched_again(
    damage: str, hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    client = client_of(hub, tmp_path)
    weights = client.fetch(REF).folder / WEIGHTS
    if damage == "cut":
        weights.resolve().write_bytes(b"short")
    elif damage == "gone":
        weights.unlink()
    else:
        weights.resolve().unlink()
    with pytest.raises(ModelOffline):
        client_of(hub, tmp_path, offline=True).fetch(REF)
    at_commit = ModelRef(model_id=MODEL_ID, revision=repo.commit)
    assert_complete(client.fetch(at_commit), repo)


def test_a_process_killed_while_downloading_leaves_a_cache_that_works(
    hub: HubStandIn, repo: Repo, tmp_path: Path
) -> None:
    code = (
        "import os, sys; from pathlib import Path; from pellucid.models.sources.hub import Hub;"
        "from pellucid.models.sources.hub_client import HubClient;"
        "from pellucid.models.backend import ModelRef;"
        "hub = Hub(HubClient(endpoint=sys.argv[1], token=None, timeout_s=5),"
        " cache_dir=Path(sys.argv[2]), max_model_bytes=10**9);"
        "die = lambda event: os._exit(9) if event.type == 'download_progress' else None;"
        "hub.fetch(ModelRef(model_id='owner/name'), progress=die)"
    )
    ran = subprocess.run([sys.executable, "-c", code, hub.endpoint, str(tmp_path)], check=False)
    assert ran.returncode == 9
    with pytest.raises(ModelOffline):
        client_of(hub, tmp_path, offline=True).fetch(REF)
    assert_complete(client_of(hub, tmp_path).fetch(REF), repo)


# ------------------------------------------------------------------------ caches of other tools


def old_cache(cache_dir: Path, files: dict[str, bytes]) -> Path:
    """A cache as older tools left it: no list of what the commit has."""
    commit = "1" * 40
    folder = cache_dir / "models--owner--name"
    for path, content in files.items():
        (folder / "snapshots" / commit / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "snapshots" / commit / path).write_bytes(content)
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    return folder / "snapshots" / commit


def test_a_cache_of_an_older_tool_is_used_when_it_makes_sense(
    hub: HubStandIn, tmp_path: Path
) -> None:
    folder = old_cache(tmp_path, {"config.json": b"{}", WEIGHTS: safetensors((2,))})
    assert client_of(hub, tmp_path, offline=True).fetch(REF).folder == folder


@pytest.mark.parametrize(
    "files",
    [
        {WEIGHTS: b""},
        {"config.json": b"{}"},
        {
            "config.json": b"{}",
            "model.safetensors.index.json": b'{"weight_map": {"x": "model-1.safetensors"}}',
            "model-00001-of-00002.safetensors": b"",
        },
        {
            "config.json": b"{}",
            "model.safetensors.index.json": b"{",
            "model-00001-of-00001.safetensors": b"",
        },
    ],
    ids=["no config", "no weights", "a shard missing", "broken index"],
)
def test_a_cache_of_an_older_tool_is_not_used_in_part(
    files: dict[str, bytes], hub: HubStandIn, tmp_path: Path
) -> None:
    old_cache(tmp_path, files)
    with pytest.raises(ModelOffline):
        client_of(hub, tmp_path, offline=True).fetch(REF)


# ------------------------------------------------------------------------------ what is in there


def test_no_loadable_weights(hub: HubStandIn, tmp_path: Path) -> None:
    hub.add_files(MODEL_ID, {"config.json": b"{}", "model.gguf": b"x", "tf_model.h5": b"x"})
    client = client_of(hub, tmp_path)
    for ask in (client.fetch, client.estimate):
        with pytest.raises(NoLoadableWeights, match=r"model\.gguf, tf_model\.h5"):
            ask(REF)


def test_sharded_weights(hub: HubStandIn, tmp_path: Path) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": safetensors((i,)) for i in (1, 2)}
    index = {"weight_map": dict(zip("ab", shards, strict=True))}
    files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode()}
    repo = hub.add_files(MODEL_ID, files | shards)
    assert_complete(client_of(hub, tmp_path).fetch(REF), repo)
    assert client_of(hub, tmp_path, offline=True).estimate(REF).num_parameters == 3


def test_an_index_that_names_a_missing_shard_stops_before_the_weights(
    hub: HubStandIn, tmp_path: Path
) -> None:
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors", "b": "other.safetensors"}}
    hub.add_files(
        MODEL_ID,
        {
            "config.json": b"{}",
            "model.safetensors.index.json": json.dumps(index).encode(),
            "model-00001-of-00001.safetensors": b"x",
        },
    )
    with pytest.raises(NoLoadableWeights, match=r"no other\.safetensors"):
        client_of(hub, tmp_path).fetch(REF)
    assert hub.requested("model-00001") == []


def test_remote_code_is_refused_before_the_weights(hub: HubStandIn, tmp_path: Path) -> None:
    files = files_of_a_model(model_type="their_own", auto_map={"AutoModel": "modeling.M"})
    files["modeling.py"] = b"raise SystemExit"
    hub.add_files(MODEL_ID, files)
    with pytest.raises(RemoteCodeRequired):
        client_of(hub, tmp_path).fetch(REF)
    assert hub.requested(WEIGHTS) == []
    assert hub.requested("modeling.py") == []
    trusted = client_of(hub, tmp_path, trust_remote_code=True).fetch(REF)
    assert (trusted.folder / "modeling.py").is_file()
    with pytest.raises(RemoteCodeRequired):  # trust ends with the setting, cached or not
        client_of(hub, tmp_path).fetch(REF)


def test_a_config_that_is_not_json_is_told(hub: HubStandIn, tmp_path: Path) -> None:
    hub.add_files(MODEL_ID, files_of_a_model() | {"config.json": b"<html>"})
    with pytest.raises(ModelLoadFailed, match=r"config\.json is not JSON"):
        client_of(hub, tmp_path).fetch(REF)


# ---------------------------------------------------------------------------------- progress


def test_progress_comes_about_four_times_a_second() -> None:
    now = 0.0
    events: list[ProgressEvent] = []
    meter = DownloadMeter(
        model_id=MODEL_ID, total_bytes=1000, progress=events.append, clock=lambda: now
    )
    meter.start()
    meter.resume(100)
    for _ in range(90):
        meter.add(10)
        now += 0.05
    assert events[0].type == "download_started"
    told = [event.data for event in events[1:]]
    assert told[0] == {"model": MODEL_ID, "bytes": 110, "total": 1000, "eta": None}
    assert len(told) == pytest.approx(90 * 0.05 * 4, abs=2)
    halfway = next(data for data in told if data["bytes"] >= 550)
    assert halfway["eta"] == pytest.approx((1000 - halfway["bytes"]) / 200, abs=0.1)
    assert told[-1] == {"model": MODEL_ID, "bytes": 1000, "total": 1000, "eta": 0.0}
