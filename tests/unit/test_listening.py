from __future__ import annotations

import os
import socket

import pytest

from pellucid.errors import AddressUnavailable, PortTaken
from pellucid.listening import allow_open_files, base_url, bind, port_holder


def test_port_0_is_a_real_port_that_accepts() -> None:
    with bind("127.0.0.1", 0) as listener:
        host, port = listener.getsockname()
        with socket.create_connection((host, port), timeout=1):
            pass
    assert port > 0


def test_localhost_answers_on_127_0_0_1() -> None:
    with bind("localhost", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_a_taken_port_names_its_holder() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortTaken) as refusal:
            bind("127.0.0.1", port)
        assert f"process {os.getpid()}" in port_holder(port)
    assert f"Port {port} on 127.0.0.1 is taken by" in refusal.value.detail
    assert f"process {os.getpid()}" in refusal.value.detail


@pytest.mark.parametrize("host", ["203.0.113.1", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(AddressUnavailable, match=host):
        bind(host, 0)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:1"),
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("::", "http://[::1]:1"),
        ("::1", "http://[::1]:1"),
        ("localhost", "http://localhost:1"),
    ],
)
def test_the_url_is_one_that_this_machine_can_open(host: str, url: str) -> None:
    assert base_url(host, 1) == url


def test_a_listener_s_connections_do_not_wait_to_fill_packets() -> None:
    """asyncio switches Nagle's algorithm off only where the protocol is named: 40 ms per answer."""
    with bind("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_the_limit_of_open_files_is_raised_and_never_lowered() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = 200
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, before[1]))
        allow_open_files(low + 50)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (low + 50, before[1])
        allow_open_files(low)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (low + 50, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
