"""The compose file is plain YAML that says what the README promises."""

from __future__ import annotations

from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="needs PyYAML")
DOCKER = Path(__file__).resolve().parents[2] / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())


def test_services_and_volumes() -> None:
    assert set(COMPOSE["services"]) == {"database", "ray-head", "ray-worker", "server"}
    mounted = {
        volume.partition(":")[0]
        for service in COMPOSE["services"].values()
        for volume in service["volumes"]
    }
    assert mounted == set(COMPOSE["volumes"])


def test_ports_are_published_on_loopback_only() -> None:
    for name, service in COMPOSE["services"].items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name


def test_secrets_come_from_the_environment() -> None:
    server = COMPOSE["services"]["server"]["environment"]
    assert server["TRIMTAB_API_KEY"].startswith("${TRIMTAB_API_KEY:?")
    assert COMPOSE["services"]["database"]["environment"]["POSTGRES_PASSWORD"].startswith("${")
    for name in ("server", "ray-head", "ray-worker"):
        environment = COMPOSE["services"][name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")


def test_the_server_takes_every_variable_it_is_given() -> None:
    from service.settings import VARIABLES

    given = {k for k in COMPOSE["services"]["server"]["environment"] if k.startswith("TRIMTAB_")}
    assert given <= set(VARIABLES.values())


def test_dependencies_wait_for_health() -> None:
    for service in COMPOSE["services"].values():
        for name, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in COMPOSE["services"][name]


def test_the_image_runs_as_a_plain_user_and_copies_every_package() -> None:
    from trimtab.__main__ import PACKAGES

    text = (DOCKER / "Dockerfile").read_text()
    assert "\nUSER trimtab\n" in text
    for package in PACKAGES:
        assert f"COPY {package} {package}\n" in text
