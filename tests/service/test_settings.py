"""Settings from the environment and from arguments."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from service.errors import SettingsError
from service.settings import Settings


def test_defaults_listen_on_loopback_with_sqlite(tmp_path: Path) -> None:
    settings = Settings.load({"TRIMTAB_DATA_DIR": str(tmp_path)})
    assert settings.loopback and settings.port == 8500 and settings.api_key is None
    assert settings.database_url == f"sqlite:///{tmp_path}/trimtab.sqlite3"
    assert settings.evaluators >= 1 and settings.ray_address == "embedded"


def test_arguments_come_before_the_environment(tmp_path: Path) -> None:
    environ = {"TRIMTAB_PORT": "1", "TRIMTAB_DATA_DIR": "/nowhere", "TRIMTAB_API_KEY": "k"}
    settings = Settings.load(environ, port=2, data_dir=tmp_path, host=None)
    assert settings.port == 2 and settings.data_dir == tmp_path and settings.api_key == "k"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_other_hosts_need_a_key(tmp_path: Path, host: str) -> None:
    with pytest.raises(SettingsError, match="TRIMTAB_API_KEY"):
        Settings.load({}, data_dir=tmp_path, host=host)
    assert not Settings.load({}, data_dir=tmp_path, host=host, api_key="k").loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_needs_none(tmp_path: Path, host: str) -> None:
    assert Settings.load({}, data_dir=tmp_path, host=host).loopback


def test_sources_of_the_environment(tmp_path: Path) -> None:
    environ = {
        "TRIMTAB_ALLOW_SOURCES": f"python:cifar_zoo, imagefolder:cats={tmp_path},torchvision",
        "TRIMTAB_CODE_PATHS": f"{tmp_path}{os.pathsep}/opt",
    }
    settings = Settings.load(environ, data_dir=tmp_path)
    assert settings.allow_sources == ("python:cifar_zoo",)
    assert settings.image_folders == {"cats": tmp_path}
    assert settings.torchvision_root == tmp_path / "torchvision"
    assert settings.code_paths == (tmp_path, Path("/opt"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"port": 99999}, "port"),
        ({"port": "http"}, "port"),
        ({"evaluators": 0}, "evaluators"),
        ({"lease_seconds": 0}, "lease_seconds"),
        ({"api_key": ""}, "api_key"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_wrong_values_name_their_setting(
    tmp_path: Path, given: dict[str, object], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        Settings.load({}, data_dir=tmp_path, **given)


def test_postgresql_goes_through_psycopg(tmp_path: Path) -> None:
    for scheme in ("postgres", "postgresql", "postgresql+psycopg"):
        settings = Settings.load({}, data_dir=tmp_path, database_url=f"{scheme}://u@h/d")
        assert settings.database_url == "postgresql+psycopg://u@h/d"


def test_the_drivers_file_is_private_and_without_the_key(tmp_path: Path) -> None:
    settings = Settings.load({}, data_dir=tmp_path, api_key="secret", host="0.0.0.0", evaluators=3)
    path = settings.write_driver_file()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "secret" not in path.read_text()
    assert Settings.from_driver_file(path).evaluators == 3
    assert "secret" not in repr(settings)
    with pytest.raises(SettingsError):
        Settings.from_driver_file(tmp_path / "nothing")
