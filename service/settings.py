"""Settings of the server and of the drivers it starts, from the environment and the command line.

The server hands its settings to the drivers in a file that only its user can read, so that no
database password or path shows in Ray's dashboard.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import SettingsError

if TYPE_CHECKING:
    from service.sources import Sources

DEFAULT_DATA_DIR = Path("~/.local/share/trimtab")
_IMAGE_FOLDER = re.compile(r"imagefolder:([A-Za-z0-9_.-]+)=(.+)")

# setting -> environment variable
VARIABLES = {
    "data_dir": "TRIMTAB_DATA_DIR",
    "database_url": "TRIMTAB_DATABASE_URL",
    "host": "TRIMTAB_HOST",
    "port": "TRIMTAB_PORT",
    "api_key": "TRIMTAB_API_KEY",
    "allow_sources": "TRIMTAB_ALLOW_SOURCES",
    "code_paths": "TRIMTAB_CODE_PATHS",
    "allow_plugins": "TRIMTAB_ALLOW_PLUGINS",
    "max_weights_bytes": "TRIMTAB_MAX_WEIGHTS_BYTES",
    "ray_address": "TRIMTAB_RAY_ADDRESS",
    "ray_dashboard_port": "TRIMTAB_RAY_DASHBOARD_PORT",
    "evaluators": "TRIMTAB_EVALUATORS",
    "lease_seconds": "TRIMTAB_LEASE_SECONDS",
    "max_running_jobs": "TRIMTAB_MAX_RUNNING_JOBS",
}


def cores() -> int:
    """Cores this process may use."""
    return max(1, len(os.sched_getaffinity(0)))


class Settings(BaseModel):
    """See the module's docstring. Build one with ``Settings.load``.

    Attributes:
        data_dir: weights, artifacts, tables, the SQLite file; shared by server and drivers.
        database_url: SQLAlchemy URL; SQLite in ``data_dir`` when not given. PostgreSQL goes through
            psycopg.
        api_key: asked for as ``Authorization: Bearer`` when set; needed to listen beyond loopback.
        allow_sources: patterns of model and data sources that users may name, see
            ``service.sources``.
        code_paths: folders appended to the end of the import path, for ``python:`` sources.
        allow_plugins: names of installed plug-ins that may be loaded, ``*`` for all, see ``service.plugins``.
        image_folders: name to folder, for ``imagefolder:NAME``.
        torchvision_root: folder of torchvision's data sets; None refuses them.
        ray_address: ``embedded``, or the address of a running Ray's dashboard,
            ``http://HOST:8265``.
        ray_num_cpus: cores the embedded Ray may use.
        evaluators: policies scored side by side.
        lease_seconds: a driver that does not renew its lease for so long has lost its job.
        max_attempts: attempts in a row that may crash without recording a trial.
        pipeline: ``module:function`` that runs a job; for tests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path
    database_url: str
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8500
    api_key: Annotated[str | None, Field(min_length=1, repr=False)] = None
    allow_sources: tuple[str, ...] = ()
    code_paths: tuple[Path, ...] = ()
    allow_plugins: tuple[str, ...] = ()
    image_folders: dict[str, Path] = {}
    torchvision_root: Path | None = None
    max_weights_bytes: Annotated[int, Field(ge=1)] = 2 * 1024**3
    ray_address: str = "embedded"
    ray_dashboard_port: Annotated[int, Field(ge=1, le=65535)] = 8265
    ray_num_cpus: Annotated[int, Field(ge=1)] = Field(default_factory=cores)
    evaluators: Annotated[int, Field(ge=1)] = Field(default_factory=cores)
    lease_seconds: Annotated[float, Field(gt=0)] = 30.0
    max_running_jobs: Annotated[int, Field(ge=1)] = 1
    max_attempts: Annotated[int, Field(ge=1)] = 3
    pipeline: str = "service.pipeline:run_job"

    @model_validator(mode="after")
    def _listens_safely(self) -> Settings:
        if not self.loopback and not self.api_key:
            raise ValueError(
                f"host {self.host} can be reached from other machines; set TRIMTAB_API_KEY, "
                "or listen on 127.0.0.1"
            )
        return self

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ, **given: Any) -> Settings:
        """Reads the environment; arguments that are not None come before it.

        Args:
            given: settings by name. Beside ``python:`` patterns ``allow_sources`` may hold
                ``imagefolder:NAME=PATH`` and ``torchvision=PATH`` (data sets); ``torchvision``
                alone keeps them under ``data_dir``.

        Raises:
            SettingsError: an unknown or unsafe value, in one line.
        """
        values: dict[str, Any] = {n: environ[v] for n, v in VARIABLES.items() if environ.get(v)}
        values |= {name: value for name, value in given.items() if value is not None}
        if isinstance(values.get("code_paths"), str):
            values["code_paths"] = values["code_paths"].split(os.pathsep)
        if isinstance(values.get("allow_sources"), str):
            values["allow_sources"] = re.split(r"[,\n]", values["allow_sources"])
        if isinstance(values.get("allow_plugins"), str):
            values["allow_plugins"] = values["allow_plugins"].replace(",", " ").split()
        values["code_paths"] = [
            Path(path).expanduser().resolve() for path in values.get("code_paths", ()) if str(path)
        ]
        data_dir = Path(values.get("data_dir", DEFAULT_DATA_DIR)).expanduser().resolve()
        values["data_dir"] = data_dir
        values |= _split_sources(values.get("allow_sources", ()), data_dir) | {
            name: values[name] for name in ("image_folders", "torchvision_root") if name in values
        }
        values["database_url"] = _database_url(str(values.get("database_url") or ""), data_dir)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise SettingsError(f"{where}: {message}" if where else message) from None

    @property
    def loopback(self) -> bool:
        """True when only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def sources(self) -> Sources:
        """The model and data sources users may name."""
        from service.sources import Sources

        return Sources(
            allow=self.allow_sources,
            code_paths=self.code_paths,
            image_folders=self.image_folders,
            torchvision_root=self.torchvision_root,
        )

    def write_driver_file(self) -> Path:
        """Leaves the settings for drivers in ``data_dir``, readable by this user only, without the
        API key.
        """
        self.data_dir.mkdir(parents=True, exist_ok=True)
        path = self.data_dir / "driver.json"
        fresh = path.with_name(f".driver.json.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            # A driver listens nowhere, so neither host nor key are its business.
            file.write(self.model_dump_json(exclude={"api_key", "host", "port"}))
        fresh.replace(path)
        return path

    @classmethod
    def from_driver_file(cls, path: Path) -> Settings:
        """Raises SettingsError where the file cannot be read."""
        try:
            return cls.model_validate_json(path.read_text())
        except (OSError, ValidationError) as error:
            raise SettingsError(f"cannot read the driver's settings {path}: {error}") from error


def _split_sources(patterns: Any, data_dir: Path) -> dict[str, Any]:
    """Patterns of ``python:`` sources apart from folders of images."""
    kept: list[str] = []
    folders: dict[str, Path] = {}
    root: Path | None = None
    for text in (str(pattern).strip() for pattern in patterns):
        if found := _IMAGE_FOLDER.fullmatch(text):
            folders[found[1]] = Path(found[2]).expanduser().resolve()
        elif text == "torchvision":
            root = data_dir / "torchvision"
        elif text.startswith("torchvision="):
            root = Path(text.removeprefix("torchvision=")).expanduser().resolve()
        elif text:
            kept.append(text)
    return {"allow_sources": tuple(kept), "image_folders": folders, "torchvision_root": root}


def _database_url(url: str, data_dir: Path) -> str:
    if not url:
        return f"sqlite:///{data_dir / 'trimtab.sqlite3'}"
    # The scheme hosters hand out names no driver; psycopg is the one we install.
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
