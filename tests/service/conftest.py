"""Fixtures of the service's tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rest_server import Running, serving

from service.demo_networks import train_digits_cnn


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with serving(tmp_path / "data", max_weights_bytes=4096) as running:
        yield running


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """State of the jobs that tests run in this process, so that the demo network's kernels are timed once."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of ``digits_cnn``, trained."""
    file = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    torch.set_num_threads(1)
    train_digits_cnn(file)
    return file


@pytest.fixture
def plugin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on this process's import path; what is imported from it is forgotten afterwards."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    before = set(sys.modules)
    yield site
    for module in set(sys.modules) - before:
        if str(site) in str(getattr(sys.modules[module], "__file__", "")):
            del sys.modules[module]


@pytest.fixture(scope="session", autouse=True)
def _short_timing() -> Iterator[None]:
    """Whole networks are timed for a quarter of the usual seconds: tests hold no time against a bound.

    Prices are learned from half as many policies, which lead to fewer kernels.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.price_setup.SAMPLES", 160)
        patch.setattr("service.price_setup.ANCHOR_SECONDS", 0.15)
        patch.setattr("service.finalists.MEASURE_SECONDS", 0.5)
        patch.setattr("service.file_results.REPORT_SECONDS", 1.0)
        yield
