"""``pellucid serve`` as a parent process sees it: its stdout, its exit code, its port."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

import pytest

import pellucid
from conftest import plain_environment
from hub_stand_in import HubStandIn
from pellucid.listening import bind
from tiny_models import build

START_S = 120.0  # torch takes long to import on a busy machine
END_S = 10.0
DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

# Prints the way libraries do, whenever one of the heavy ones is imported and for as long as the
# process lives: through Python, through the descriptor, through C, through a progress bar.
NOISE = """
import importlib.abc, sys
if "serve" in sys.argv or "--multiprocessing-fork" in sys.argv or "-c" in sys.argv:
    import builtins, os, threading, time

    class Noisy(importlib.abc.MetaPathFinder):
        started = False
        def find_spec(self, name, path, target=None):
            if name in ("fastapi", "openvino", "torch", "transformers", "sklearn"):
                print("imported", name)
                sys.__stdout__.write("progress: 50%\\r")
                sys.__stdout__.flush()
                os.write(1, b"no newline at the end, by descriptor")
                import ctypes
                ctypes.CDLL(None).puts(b"PROGRESS:not json, by C")
                ctypes.CDLL(None).fflush(None)
                if not Noisy.started:
                    Noisy.started = True
                    threading.Thread(target=self.go_on, daemon=True).start()
            return None
        def go_on(self):
            while True:
                os.write(1, b"PROGRESS:{broken\\n")
                time.sleep(0.01)

    sys.meta_path.insert(0, Noisy())
"""


@dataclass
class Child:
    """A server process with its output, line by line as it comes."""

    process: subprocess.Popen[bytes]
    lines: list[bytes] = field(default_factory=list)
    stderr_path: Path = Path(os.devnull)
    _arrived: Queue[bytes | None] = field(default_factory=Queue)

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._arrived.put(line)
        self._arrived.put(None)

    def wait_for(self, *types: str) -> dict[str, Any]:
        """The next event of one of these types; every line on the way must parse."""
        until = time.monotonic() + START_S
        while True:
            try:
                line = self._arrived.get(timeout=max(0.01, until - time.monotonic()))
            except Empty:
                raise AssertionError(f"no {types} came: {self.lines}\n{self.stderr()}") from None
            assert line is not None, f"ended without {types}: {self.lines}\n{self.stderr()}"
            self.lines.append(line)
            event = parsed(line)
            if event["type"] in types:
                return event

    def finish(self) -> int:
        """The exit code, once stdout is closed and read to its end."""
        code = self.process.wait(START_S)
        while (line := self._arrived.get(timeout=5)) is not None:
            self.lines.append(line)
        return code

    @property
    def types(self) -> list[str]:
        return [parsed(line)["type"] for line in self.lines]

    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace")


def parsed(line: bytes) -> dict[str, Any]:
    assert line.startswith(b"PROGRESS:"), line
    assert line.endswith(b"\n"), line
    event: dict[str, Any] = json.loads(line.removeprefix(b"PROGRESS:"))
    assert set(event) == {"type", "data"}
    return event


@contextmanager
def serving(tmp_path: Path, *arguments: str, **environment: str) -> Iterator[Child]:
    stderr_path = tmp_path / "stderr"
    with stderr_path.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "pellucid", "serve", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=tmp_path,
            env=plain_environment(**environment),
        )
    child = Child(process, stderr_path=stderr_path)
    reader = Thread(target=child.read, daemon=True)
    reader.start()
    try:
        yield child
    finally:
        process.kill()
        process.wait()
        reader.join(5)
        assert process.stdout is not None
        process.stdout.close()


def get(ready: dict[str, Any], path: str) -> tuple[int, dict[str, Any]]:
    url = f"http://{ready['data']['host']}:{ready['data']['port']}{path}"
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("bert", tmp_path_factory.mktemp("tiny") / "bert")


def test_stdout_is_the_contract_s_whatever_libraries_print(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NOISE)
    with serving(tmp_path, "--port", "0", PYTHONPATH=str(tmp_path)) as child:
        ready = child.wait_for("server_ready")
        assert ready["data"]["pid"] == child.process.pid
        assert ready["data"]["port"] > 0
        assert ready["data"]["host"] == "127.0.0.1"
        assert get(ready, "/health")[0] == 200  # bound, whether or not the model is there
        if "model_loaded" not in child.types:
            child.wait_for("model_loaded")
        status, answer = get(ready, "/ready")
        assert status == 200, answer
        child.process.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        assert child.finish() == 0, child.stderr()
        assert time.monotonic() - begin < END_S
    about_model = [kind for kind in child.types if kind != "server_ready"]
    assert about_model == ["model_cached", "model_loaded"]
    events = {parsed(line)["type"]: parsed(line)["data"] for line in child.lines}
    assert events["model_cached"] == {"model": DEFAULT_MODEL}
    assert events["model_loaded"] == {"model": DEFAULT_MODEL, "dimensions": 384}
    noise = child.stderr()
    assert "imported openvino" in noise, "the noise never came, so nothing was shown"
    assert "by C" in noise
    assert "broken" in noise


def test_a_download_tells_its_progress_and_a_second_start_does_not_download(
    tmp_path: Path, hub: HubStandIn, tiny_encoder: Path
) -> None:
    hub.add("owner/tiny", tiny_encoder)
    environment = {
        "PELLUCID_HUB_ENDPOINT": hub.endpoint,
        "PELLUCID_HUB_CACHE_DIR": str(tmp_path / "cache"),
        "PELLUCID_MODEL": "owner/tiny",
    }
    for expected in ("download_started", "model_cached"):
        with serving(tmp_path, "--port", "0", **environment) as child:
            child.wait_for("model_loaded")
            child.process.send_signal(signal.SIGINT)
            assert child.finish() == 0, child.stderr()
        about_model = [kind for kind in child.types if kind != "server_ready"]
        assert about_model[0] == expected
        assert about_model[-1] == "model_loaded"
        first = expected == "download_started"
        assert set(about_model[1:-1]) <= ({"download_progress"} if first else set())
    assert parsed(child.lines[-1])["data"]["model"] == "owner/tiny"


def test_a_taken_port_is_told_and_ends_it(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with serving(tmp_path, "--port", str(port)) as child:
            assert child.finish() == 1
    assert child.types == ["error"]
    told = parsed(child.lines[0])["data"]
    assert told["code"] == "port_taken"
    assert str(port) in told["message"]
    assert str(port) in child.stderr()
    assert "Traceback" not in child.stderr()


def test_an_impossible_setting_is_told_and_ends_it(tmp_path: Path) -> None:
    with serving(tmp_path, PELLUCID_PORT="many") as child:
        assert child.finish() == 2
    assert child.types == ["error"]
    assert parsed(child.lines[0])["data"]["code"] == "invalid_settings"


def test_a_model_that_cannot_be_had_is_told_and_the_server_stays(
    tmp_path: Path, hub: HubStandIn
) -> None:
    environment = {
        "PELLUCID_HUB_ENDPOINT": hub.endpoint,
        "PELLUCID_HUB_CACHE_DIR": str(tmp_path / "cache"),
    }
    with serving(tmp_path, "--port", "0", "--model", "owner/missing", **environment) as child:
        seen = [child.wait_for("server_ready", "error") for _ in range(2)]
        events = {event["type"]: event for event in seen}
        assert events["error"]["data"]["code"] == "model_not_found"
        assert "owner/missing" in events["error"]["data"]["message"]
        assert get(events["server_ready"], "/health")[0] == 200
        status, answer = get(events["server_ready"], "/ready")
        assert status == 503
        assert "model_not_found" in json.dumps(answer)
        child.process.send_signal(signal.SIGTERM)
        assert child.finish() == 0, child.stderr()


def test_a_parent_that_closes_its_end_does_not_stop_the_server(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    read_fd, write_fd = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "pellucid", "serve", "--port", str(port)],
        stdout=write_fd,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        env={**os.environ, "PELLUCID_MODEL": str(tiny_encoder), "OMP_NUM_THREADS": "1"},
    )
    os.close(write_fd)
    os.close(read_fd)
    try:
        ready = {"data": {"host": "127.0.0.1", "port": port}}
        until = time.monotonic() + START_S
        status = 0
        while status != 200:
            assert time.monotonic() < until, "never ready"
            assert process.poll() is None, "the server ended with its parent's pipe"
            try:
                status, _ = get(ready, "/ready")
            except OSError:
                time.sleep(0.2)
        process.terminate()
        assert process.wait(END_S) == 0
    finally:
        process.kill()
        process.wait()


def test_ends_with_its_parent_when_told_to(tmp_path: Path, tiny_encoder: Path) -> None:
    """A middle process starts the server and is killed; the orphan follows."""
    program = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-m', 'pellucid', 'serve', '--port', '0',"
        " '--exit-with-parent'])\n"
        "time.sleep(1000)\n"
    )
    middle = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        env={**os.environ, "PELLUCID_MODEL": str(tiny_encoder), "OMP_NUM_THREADS": "1"},
    )
    assert middle.stdout is not None
    try:
        for line in middle.stdout:
            if parsed(line)["type"] == "server_ready":
                break
        middle.kill()
        middle.wait()
        begin = time.monotonic()
        middle.stdout.read()  # ends when the orphan, who holds the pipe, has ended
        assert time.monotonic() - begin < END_S + 5
    finally:
        middle.kill()
        middle.wait()
        middle.stdout.close()


def test_ends_at_once_and_quietly_while_a_model_still_loads(tmp_path: Path) -> None:
    with serving(tmp_path, "--port", "0") as child:
        child.wait_for("server_ready")  # importing torch alone takes longer than what follows
        child.process.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        assert child.finish() == 0, child.stderr()
        assert time.monotonic() - begin < END_S
    assert "model_loaded" not in child.types
    assert "Traceback" not in child.stderr()


def test_reload_serves_again_after_a_change_on_the_same_port(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    watched = Path(pellucid.__file__).parent / "cli" / "openapi.py"
    model = {"PELLUCID_MODEL": str(tiny_encoder)}
    with serving(tmp_path, "--port", "0", "--reload", **model) as child:
        first = child.wait_for("server_ready")
        child.wait_for("model_loaded")
        watched.touch()
        second = child.wait_for("server_ready")
        assert second["data"]["port"] == first["data"]["port"]
        assert second["data"]["pid"] != first["data"]["pid"]
        assert get(second, "/health")[0] == 200
        child.process.send_signal(signal.SIGTERM)
        assert child.finish() == 0, child.stderr()


def test_a_token_is_made_for_other_addresses_and_told_on_stderr_only(
    tmp_path: Path, tiny_encoder: Path
) -> None:
    model = {"PELLUCID_MODEL": str(tiny_encoder)}
    with serving(tmp_path, "--port", "0", "--host", "0.0.0.0", **model) as child:
        ready = child.wait_for("server_ready")
        ready["data"]["host"] = "127.0.0.1"
        assert get(ready, "/info")[0] == 401
        token = re.search(r"shown once\): (\S+)", child.stderr())
        assert token is not None
        address = f"http://127.0.0.1:{ready['data']['port']}/info"
        request = urllib.request.Request(address)
        request.add_header("Authorization", f"Bearer {token[1]}")
        with urllib.request.urlopen(request, timeout=30) as response:
            assert response.status == 200
    assert child.stderr().count(token[1]) == 1
    assert not any(token[1].encode() in line for line in child.lines)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_on_a_terminal_it_speaks_sentences(tmp_path: Path, tiny_encoder: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pellucid", "serve", "--port", "0"],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        env={**os.environ, "PELLUCID_MODEL": str(tiny_encoder), "OMP_NUM_THREADS": "1"},
    )
    os.close(theirs)
    try:
        shown = b""
        until = time.monotonic() + START_S
        while b"ready:" not in shown:
            assert time.monotonic() < until, shown
            shown += os.read(ours, 4096)
        process.terminate()
        assert process.wait(END_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b"PROGRESS:" not in shown
    assert re.search(rb"Pellucid listens on http://127\.0\.0\.1:\d+", shown)
    assert b"curl -s http://127.0.0.1:" in shown


@pytest.mark.parametrize("after_s", [0.7, 1.5])
def test_ends_cleanly_however_early(tmp_path: Path, after_s: float) -> None:
    with serving(tmp_path, "--port", "0") as child:
        time.sleep(after_s)
        child.process.send_signal(signal.SIGTERM)
        assert child.finish() == 0, child.stderr()
    assert "Traceback" not in child.stderr()
