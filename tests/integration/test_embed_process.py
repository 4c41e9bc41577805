"""``pellucid embed`` and ``inspect`` with a real model, in processes of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from conftest import plain_environment
from tiny_models import build

NUM_ROWS = 3_000
START_S = 120.0


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("bert", tmp_path_factory.mktemp("tiny") / "bert")


def command(*arguments: str, model: Path) -> list[str]:
    return [sys.executable, "-m", "pellucid", *arguments, "--model", str(model)]


def run(*arguments: str, model: Path, folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(*arguments, model=model),
        capture_output=True,
        cwd=folder,
        env=plain_environment(),
        timeout=START_S,
        check=False,
    )


def test_killed_and_begun_again_every_row_is_there_once(tmp_path: Path, tiny_encoder: Path) -> None:
    texts = [f"row {number} " + "of many words " * (number % 7) for number in range(NUM_ROWS)]
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    output = tmp_path / "out.jsonl"
    arguments = ("embed", "in.txt", "--output", "out.jsonl")
    process = subprocess.Popen(
        command(*arguments, model=tiny_encoder),
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        env=plain_environment(),
    )
    until = time.monotonic() + START_S
    while not output.exists() or output.stat().st_size == 0:
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first_run = output.read_bytes()
    num_done = first_run.count(b"\n")
    assert 0 < num_done < NUM_ROWS, "killed too late to show anything"
    with output.open("ab") as stream:  # as a kill in the midst of a write leaves it
        stream.write(b'{"index":%d,"file":"in.txt","embedd' % num_done)

    done = run(*arguments, model=tiny_encoder, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{NUM_ROWS - num_done} embedded, {num_done} done before".encode() in done.stderr
    assert output.read_bytes().startswith(first_run)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(NUM_ROWS))

    whole = run("embed", "in.txt", "--output", "whole.npz", model=tiny_encoder, folder=tmp_path)
    assert whole.returncode == 0, whole.stderr
    with np.load(tmp_path / "whole.npz") as archive:
        resumed = np.array([row["embedding"] for row in rows], dtype=np.float32)
        np.testing.assert_allclose(resumed, archive["embeddings"], atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(archive["embeddings"], axis=1), 1, atol=1e-5)


def test_a_reader_that_has_enough_is_no_traceback(tmp_path: Path, tiny_encoder: Path) -> None:
    (tmp_path / "in.txt").write_text("row\n" * 2_000)
    process = subprocess.Popen(
        command("embed", "in.txt", model=tiny_encoder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=plain_environment(),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert json.loads(process.stdout.readline())["index"] == 0
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(START_S) == 1
    assert b"Traceback" not in stderr
    assert b"Exception" not in stderr


def test_inspect_saves_and_prints_without_noise(tmp_path: Path, tiny_encoder: Path) -> None:
    done = run(
        "inspect",
        "The quick brown fox.",
        "--json",
        "--save",
        "fox.safetensors",
        model=tiny_encoder,
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    saved = load_file(tmp_path / "fox.safetensors")["attentions"]
    np.testing.assert_allclose(saved, np.array(answer["attentions"]), rtol=1e-6)
    np.testing.assert_allclose(saved.sum(axis=-1), 1, atol=1e-5)
