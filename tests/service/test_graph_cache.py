"""Kernels of sampled policies are read off the runtime once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compressors import Compressor
from latency_tables import KernelUse, parse_target
from search_spaces import Policy
from search_spaces.latency_model import sample_policies
from service.graphs import Graphs
from service.job_setup import LoadedNetwork, load_network
from service.sources import Sources

SHAPE = (1, 8, 8)
TARGET = parse_target("x86-ort")


@pytest.fixture(scope="module")
def loaded() -> LoadedNetwork:
    torch.set_num_threads(1)
    source = "python:service.demo_networks:digits_cnn"
    return load_network(source, Sources(), None, SHAPE, TARGET)


@pytest.fixture(scope="module")
def compressor(loaded: LoadedNetwork) -> Compressor:
    groups = list(loaded.network_space.groups.values())
    return Compressor(loaded.prepared, torch.randn(8, *SHAPE), groups)


def plain(found: tuple[list[KernelUse], int]) -> tuple[list[tuple[str, str, int]], int]:
    return [(u.kernel.key, u.scope, u.count) for u in found[0]], found[1]


def policies(loaded: LoadedNetwork) -> list[Policy]:
    return sample_policies(loaded.network_space, 6, seed=4)


def test_the_next_job_reads_what_the_first_one_kept(
    loaded: LoadedNetwork, compressor: Compressor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Graphs(compressor, loaded.network_space, TARGET, tmp_path)
    wanted = [plain(first.of_policy(p)) for p in policies(loaded)]
    assert wanted == [plain(first.of(loaded.network_space.choices(p))) for p in policies(loaded)]
    first.save()
    assert len(list(tmp_path.iterdir())) == 1

    second = Graphs(compressor, loaded.network_space, TARGET, tmp_path)
    monkeypatch.setattr(Graphs, "of", lambda *_: pytest.fail("read off the runtime again"))
    assert [plain(second.of_policy(p)) for p in policies(loaded)] == wanted


def test_nothing_is_kept_without_a_folder_or_without_save(
    loaded: LoadedNetwork, compressor: Compressor, tmp_path: Path
) -> None:
    for folder in (None, tmp_path):
        Graphs(compressor, loaded.network_space, TARGET, folder).of_policy(policies(loaded)[0])
    assert not list(tmp_path.iterdir())


def test_another_batch_is_another_file(
    loaded: LoadedNetwork, compressor: Compressor, tmp_path: Path
) -> None:
    for target in (TARGET, parse_target("x86-ort?batch=2")):
        graphs = Graphs(compressor, loaded.network_space, target, tmp_path)
        graphs.of_policy(policies(loaded)[0])
        graphs.save()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"not a file of ours", b"\x1f\x8b\x08\x00cut"])
def test_a_damaged_file_is_written_anew(
    damage: bytes, loaded: LoadedNetwork, compressor: Compressor, tmp_path: Path
) -> None:
    graphs = Graphs(compressor, loaded.network_space, TARGET, tmp_path)
    wanted = plain(graphs.of_policy(policies(loaded)[0]))
    graphs.save()
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage or whole[: len(whole) // 2])
    again = Graphs(compressor, loaded.network_space, TARGET, tmp_path)
    assert plain(again.of_policy(policies(loaded)[0])) == wanted
    again.save()
    assert file.read_bytes() == whole


def test_a_full_disk_costs_only_the_next_job(
    loaded: LoadedNetwork, compressor: Compressor, tmp_path: Path
) -> None:
    (tmp_path / "graphs").write_text("a file where a folder should be")
    graphs = Graphs(compressor, loaded.network_space, TARGET, tmp_path / "graphs")
    graphs.of_policy(policies(loaded)[0])
    graphs.save()
