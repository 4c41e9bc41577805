from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

import pellucid.services
from conftest import plain_settings
from hub_stand_in import HubStandIn
from pellucid import __version__, errors
from pellucid.cli.app import app
from pellucid.cli.options import settings_from
from pellucid.inference.engine import EmbeddingQuery, Embeddings, Inspection, InspectionQuery
from pellucid.inference.inspection import inspect
from pellucid.models.fake.backend import FakeBackend
from pellucid.settings import Settings
from stub_engine import StubEngine


class BackendEngine(StubEngine):
    """Inspections of the fake backend, embeddings of the stub."""

    async def inspect(self, query: InspectionQuery) -> Inspection:
        await self._work(query)
        return inspect(FakeBackend(), query, settings=plain_settings()).inspection

    async def embed(self, query: EmbeddingQuery) -> Embeddings:
        for text in query.inputs:
            if isinstance(text, str) and not text.strip():
                raise errors.EmptyText(field="inputs[0]")
        return await super().embed(query)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PORT", "MODEL_NAME", "MODEL_REPO_URL", "PELLUCID_MODEL", "PELLUCID_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)  # no .env of whoever runs the tests


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> BackendEngine:
    engine = BackendEngine()
    monkeypatch.setattr(pellucid.services, "build_engine", lambda *_, **__: engine)
    return engine


def run(*arguments: str, stdin: bytes | None = None) -> Any:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def test_the_version() -> None:
    assert run("--version").stdout == f"pellucid {__version__}\n"


@pytest.mark.parametrize("command", ["serve", "inspect", "embed", "models", "doctor", "settings"])
def test_every_command_explains_itself(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--help" in result.stdout


def test_what_each_command_does_fits_a_terminal() -> None:
    commands = run("--help").stdout.partition("Commands:")[2]
    assert "inspect" in commands
    assert "..." not in commands


def test_help_and_version_import_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from pellucid.cli.app import app\n"
        "heavy = {'torch', 'transformers', 'numpy', 'fastapi', 'uvicorn', 'huggingface_hub',"
        " 'rich', 'sklearn', 'structlog'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, f"imported: {done.stderr}"


def test_no_flag_takes_a_token() -> None:
    assert "token" not in run("serve", "--help").stdout.replace("token comes from", "")


# ------------------------------------------------------------------------------------- inspect


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(folder: Path) -> Path:
        if folder.parts[0] == "~":
            raise RuntimeError("Could not determine home directory.")
        return folder

    monkeypatch.delenv("PELLUCID_DATA_DIR", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(errors.InvalidSettings, match="set HOME"):
        settings_from()
    assert settings_from(data_dir=Path("/data")).data_dir == Path("/data")


def test_inspect_has_no_graph_made(monkeypatch: pytest.MonkeyPatch) -> None:
    runtimes = []

    def build(settings: Settings, *_: Any, **__: Any) -> BackendEngine:
        runtimes.append(settings.embedding_runtime)
        return BackendEngine()

    monkeypatch.setattr(pellucid.services, "build_engine", build)
    assert run("inspect", "the cat sat").exit_code == 0
    assert runtimes == ["torch"]


def test_inspect_shows_tokens_and_heads(engine: BackendEngine) -> None:
    result = run("inspect", "the cat sat")
    assert result.exit_code == 0, result.output
    for word in ("cat", "Who looks at whom", "Strongest heads", "Patterns"):
        assert word in result.stdout
    assert engine.closed


def test_inspect_reads_stdin_and_passes_everything_on(engine: BackendEngine) -> None:
    text = "the käfer sat\n".encode()
    result = run("inspect", "-", "--layer", "1", "--head", "0", "--truncate", stdin=text)
    assert result.exit_code == 0, result.output
    assert "layer 1, head 0" in result.stdout
    query = engine.seen[-1]
    assert query.text == "the käfer sat"
    assert (query.layers, query.heads, query.truncate) == ((1,), (0,), "end")


def test_inspect_prints_the_same_json_as_the_api(engine: BackendEngine) -> None:
    answer = json.loads(run("inspect", "the cat sat", "--json").stdout)
    assert [token["text"] for token in answer["tokens"]] == ["[CLS]", "the", "cat", "sat", "[SEP]"]
    assert np.shape(answer["attentions"]) == tuple(answer["tensors"]["attentions"]["shape"])
    assert "statistics" in answer


def test_inspect_saves_what_safetensors_loads(engine: BackendEngine, tmp_path: Path) -> None:
    saved = tmp_path / "cat.safetensors"
    result = run("inspect", "the cat sat", "--save", str(saved), "--hidden-states", "--json")
    tensors = load_file(saved)
    answer = json.loads(result.stdout)
    assert set(tensors) == {"attentions", "hidden_states"}
    for name, tensor in tensors.items():
        np.testing.assert_allclose(tensor, np.array(answer[name]), rtol=1e-6)


def test_inspect_into_a_folder_that_is_not_there_says_so_before_the_work(
    engine: BackendEngine, tmp_path: Path
) -> None:
    result = run("inspect", "x", "--save", str(tmp_path / "no" / "x.safetensors"))
    assert result.exit_code == 2
    assert "output_unusable" in result.stderr
    assert not engine.seen


def test_a_head_needs_its_layer(engine: BackendEngine) -> None:
    result = run("inspect", "x", "--head", "1")
    assert result.exit_code == 2
    assert "--layer" in result.stderr


# --------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (errors.LayerOutOfRange(layer=9, model_id="m", num_layers=6), 2),
        (errors.ModelNotFound(model_id="m", revision="main"), 1),
    ],
    ids=["bad input", "otherwise"],
)
def test_an_error_is_its_code_and_the_way_out(
    engine: BackendEngine, error: errors.PellucidError, exit_code: int
) -> None:
    engine.error = error
    result = run("inspect", "x")
    assert result.exit_code == exit_code
    assert result.stderr == f"pellucid: {error.code}: {error.detail}\n"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("error", "flag"),
    [
        (errors.TooManyTokens(field="text", tokens=9, model_id="m", max_tokens=8), "--truncate"),
        (errors.TargetRequired(model_id="m"), "--target"),
        (errors.TargetUnsupported(model_id="m"), "--target"),
        (errors.PairUnsupported(model_id="m"), "--pair"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.code,
)
def test_the_way_out_names_options_not_fields_of_a_request(
    engine: BackendEngine, error: errors.PellucidError, flag: str
) -> None:
    engine.error = error
    result = run("inspect", "x")
    assert f"`{flag}`" in result.stderr
    assert flag in run("inspect", "--help").stdout


def test_a_defect_is_one_line_too(engine: BackendEngine) -> None:
    engine.error = RuntimeError("something unforeseen")
    result = run("inspect", "x")
    assert result.exit_code == 1
    assert "internal_error" in result.stderr
    assert "something unforeseen" in result.stderr
    assert "--log-level debug" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_interruption_is_quiet(engine: BackendEngine) -> None:
    engine.error = KeyboardInterrupt()
    result = run("inspect", "x")
    assert result.exit_code == 130
    assert result.output == ""


def test_an_impossible_flag_is_refused(engine: BackendEngine) -> None:
    result = run("inspect", "x", "--device", "gpu")
    assert result.exit_code == 2
    assert "invalid_settings: device is 'gpu'" in result.stderr
    assert not engine.seen


# ---------------------------------------------------------------------------------------- embed


def test_embed_writes_lines_and_lists_bad_rows(engine: BackendEngine, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": " "}\n{"text": "c"}\n')
    result = run("embed", "in.jsonl", "--output", "out.jsonl")
    assert result.exit_code == 3
    assert "2 embedded, 1 without a result" in result.stderr
    assert "in.jsonl:2 empty_text" in result.stderr
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == [0, 2]
    again = run("embed", "in.jsonl", "--output", "out.jsonl")
    assert again.exit_code == 3
    assert "0 embedded, 2 done before, 1 without a result" in again.stderr


def test_embed_goes_through_pipes(engine: BackendEngine) -> None:
    result = run("embed", "-", "--no-normalize", "--input-type", "query", stdin=b"one\ntwo\n")
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["index"] for line in result.stdout.splitlines()] == [0, 1]
    query = engine.seen[-1]
    assert (query.normalize, query.input_type, query.priority) == (False, "query", "bulk")


def test_embed_writes_an_archive_once(engine: BackendEngine, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("one\ntwo\n")
    assert run("embed", "in.txt", "-o", "out.npz").exit_code == 0
    with np.load(tmp_path / "out.npz") as archive:
        assert archive["embeddings"].shape == (2, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.txt",
        "out.npz",
        "out.npz.job.json",
    ]
    num_calls = len(engine.seen)
    again = run("embed", "in.txt", "-o", "out.npz")
    assert "0 embedded, 2 done before" in again.stderr
    assert not any(isinstance(query, EmbeddingQuery) for query in engine.seen[num_calls:])


def test_embed_refuses_changed_input_with_the_way_out(
    engine: BackendEngine, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("one\n")
    assert run("embed", "in.txt", "-o", "out.npz").exit_code == 0
    (tmp_path / "in.txt").write_text("other\n")
    result = run("embed", "in.txt", "-o", "out.npz")
    assert result.exit_code == 2
    assert "input_changed" in result.stderr
    assert "out.npz.job.json" in result.stderr
    assert run("embed", "in.txt", "-o", "out.npz", "--overwrite").exit_code == 0


def test_embed_keeps_a_file_that_is_not_its_own(engine: BackendEngine, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("one\n")
    for name in ("precious.npz", "precious.jsonl"):
        (tmp_path / name).write_bytes(b"precious")
        result = run("embed", "in.txt", "-o", name)
        assert result.exit_code == 2
        assert "output_unusable" in result.stderr
        assert (tmp_path / name).read_bytes() == b"precious"


def test_embed_from_a_pipe_does_not_pretend_to_resume(
    engine: BackendEngine, tmp_path: Path
) -> None:
    assert run("embed", "-", "-o", "out.jsonl", stdin=b"one\n").exit_code == 0
    result = run("embed", "-", "-o", "out.jsonl", stdin=b"one\n")
    assert result.exit_code == 2
    assert "cannot go on" in result.stderr


# ----------------------------------------------------------------- models, settings, openapi


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: HubStandIn) -> HubStandIn:
    monkeypatch.setenv("PELLUCID_HUB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PELLUCID_HUB_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("PELLUCID_PORT", "1")  # no server of ours listens there
    hub.add_files(
        "owner/tiny",
        {"config.json": b'{"model_type": "bert"}', "model.safetensors": _empty_weights()},
    )
    return hub


def _empty_weights() -> bytes:
    from safetensors.numpy import save

    return save({"w": np.zeros(25, dtype=np.float32)})


def test_models_lists_the_default_and_the_cache(cache: HubStandIn) -> None:
    (before,) = json.loads(run("models", "--json").stdout)
    assert before["model_id"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert before["state"] == ["default", "on this machine"]
    pulled = run("models", "pull", "owner/tiny")
    assert pulled.exit_code == 0, pulled.output
    assert "downloaded" in pulled.stdout
    _, after = json.loads(run("models", "--json").stdout)
    assert after["model_id"] == "owner/tiny"
    assert after["state"] == ["on this machine"]
    assert after["revision"] == cache.repos["owner/tiny"].commit
    assert "already on this machine" in run("models", "pull", "owner/tiny").stdout
    assert "owner/tiny" in run("models").stdout


def test_models_estimate_says_the_size_before_a_download(cache: HubStandIn) -> None:
    told = json.loads(run("models", "estimate", "owner/tiny", "--json").stdout)
    assert told["weights_bytes"] >= 100
    assert told["fits"] is True
    assert told["download_bytes"] > 0
    assert not cache.requested("resolve/main/model.safetensors")
    assert "to download" in run("models", "estimate", "owner/tiny").stdout


def test_models_estimate_says_when_it_is_over_the_limit(
    cache: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PELLUCID_MAX_MODEL_BYTES", "10")
    assert "over the limit of 10 bytes" in run("models", "estimate", "owner/tiny").stdout


def test_a_missing_model_is_an_error_of_its_own(cache: HubStandIn) -> None:
    result = run("models", "pull", "owner/missing")
    assert result.exit_code == 1
    assert "model_not_found" in result.stderr


def test_settings_tell_where_each_value_comes_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PELLUCID_AUTH_TOKEN", "hush")
    monkeypatch.setenv("PORT", "1234")
    (tmp_path / ".env").write_text("PELLUCID_HOST=localhost\n")
    rows = {row["setting"]: row for row in json.loads(run("settings", "--json").stdout)}
    assert (rows["port"]["value"], rows["port"]["source"]) == (1234, "PORT (environment)")
    assert (rows["host"]["value"], rows["host"]["source"]) == ("localhost", "PELLUCID_HOST (.env)")
    assert rows["device"]["source"] == "default"
    assert "hush" not in run("settings").stdout + run("settings", "--json").stdout
    shown = run("settings").stdout.splitlines()
    values = {words[0]: words[1] for words in map(str.split, shown) if len(words) > 3}
    for name, value in (("revision", "unset"), ("cors_origins", "unset"), ("device", "auto")):
        assert values[name] == value


def test_openapi_prints_the_document() -> None:
    document = json.loads(run("openapi").stdout)
    assert document["openapi"].startswith("3.")
    assert "/v1/inspections" in document["paths"]
