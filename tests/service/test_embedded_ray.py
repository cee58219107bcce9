"""The head that a server starts, where its ports are taken from it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import embedded_ray
from service.embedded_ray import EmbeddedRay
from service.errors import RuntimeUnavailable


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of loopback on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def test_a_port_that_another_program_takes_meanwhile_costs_a_second_start(
    tmp_path: Path, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[int]] = []
    free = embedded_ray.free_ports

    def raced(count: int, first: int) -> list[int]:
        ports = free(count, first)
        given.append(ports if given else [taken, *ports[1:]])
        return given[-1]

    monkeypatch.setattr(embedded_ray, "free_ports", raced)
    ray = EmbeddedRay(tmp_path, taken, num_cpus=1)
    try:
        head = ray.ensure()
        assert len(given) == 2
        assert head.alive and head.url == f"http://127.0.0.1:{given[1][0]}"
    finally:
        ray.stop()
    assert not head.alive


def test_ports_that_stay_taken_are_an_error_that_names_the_log(
    tmp_path: Path, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = embedded_ray.free_ports
    monkeypatch.setattr(
        embedded_ray, "free_ports", lambda count, first: [taken, *free(count, first)[1:]]
    )
    monkeypatch.setattr(embedded_ray, "_TRIES", 1)
    ray = EmbeddedRay(tmp_path, taken, num_cpus=1)
    with pytest.raises(RuntimeUnavailable, match=r"head\.log"):
        ray.ensure()
    assert (tmp_path / "head.log").read_text()
