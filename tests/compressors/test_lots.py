"""Lots: many trainings, cut off and gone on with, on one device."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressors import Choices, Compressed, Compressor, find_groups, load, prepare, save
from compressors.errors import TrainingError
from compressors.finetuning import Finetuning, Recipe, finetune
from compressors.lots import RESULT_FILE, WORK_FILE, TrainingJob, held_out_score, train_lot
from compressors.training_images import TensorImages
from tests.networks import SHAPE, PadResNet, randomized

ROOT = Path(__file__).resolve().parents[2]
IMAGES = TensorImages(
    torch.randint(
        0, 256, (64, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    ),
    torch.arange(64) % 5,
    (0.5, 0.5, 0.5),
    (0.25, 0.25, 0.25),
)


class Setting:
    """A folder with everything a lot needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        original = randomized(PadResNet())
        save_file(original.state_dict(), folder / "weights.safetensors")
        IMAGES.save(folder / "train.safetensors")
        IMAGES.subset(range(16)).save(folder / "calibration.safetensors")
        calibration = IMAGES.subset(range(16))
        self.original = prepare(original)
        groups, _ = find_groups(self.original, torch.zeros((2, *SHAPE)))
        self.compressor = Compressor(
            self.original, calibration.normalised(calibration.images), groups
        )
        layers = frozenset(layer.path for layer in self.compressor.structure.layers)
        choices = Choices({g.root: g.channels // 2 for g in groups}, integer=layers)
        self.start: Compressed = self.compressor.compress(choices, refit=False)
        (folder / "start").mkdir()
        save(self.start.network, self.start.plan, folder / "start")

    def job(self, name: str, epochs: int = 3, seed: int = 0, **more: object) -> TrainingJob:
        recipe = Recipe(epochs, batch=16, seed=seed, **more)  # type: ignore[arg-type]
        factory = "tests.networks:PadResNet"
        return TrainingJob(
            name, factory, self.folder / "weights.safetensors", self.folder / "start", recipe
        )

    def train(
        self, jobs: list[TrainingJob], seconds: float = 600.0, processes: int = 1, stack: int = 2
    ) -> dict[str, dict[str, object]]:
        return train_lot(
            jobs, self.folder / "train.safetensors", self.folder / "calibration.safetensors",
            self.folder / "out", seconds, processes, stack, "cpu",
            self.folder / "train.safetensors", (ROOT,),
        )  # fmt: skip


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("lot"))


def test_stacked_trainings_give_what_each_gives_alone(setting: Setting) -> None:
    jobs = [setting.job(f"alone-{k}", seed=k) for k in range(3)]
    states = setting.train(jobs)
    assert {s["state"] for s in states.values()} == {"finished"}
    assert json.loads((setting.folder / "out" / WORK_FILE).read_text()) == states
    for job in jobs:
        alone = Finetuning(
            setting.compressor,
            setting.start,
            IMAGES,
            job.recipe,
            setting.folder / f"own-{job.name}",
        )
        made = finetune(alone, lambda _e, _n: None)
        stacked = load_file(setting.folder / "out" / job.name / "model.safetensors")
        own = made.network.state_dict()
        assert all(torch.equal(stacked[name], own[name]) for name in own)
        found = held_out_score(made, setting.compressor.folded, IMAGES, "cpu")
        assert {k: states[job.name][k] for k in found} == pytest.approx(found)
        rebuilt = load(PadResNet, setting.folder / "out" / job.name)
        inputs = IMAGES.normalised(IMAGES.images)
        with torch.no_grad():
            assert torch.equal(rebuilt(inputs), made.runnable()(inputs))


def test_a_lot_goes_on_where_the_last_one_stopped(setting: Setting) -> None:
    job = setting.job("cut", epochs=4)
    out = setting.folder / "out" / "cut"
    states = setting.train([job], seconds=0.0)
    seen = [states["cut"]["epoch"]]
    lots = 0
    while states["cut"]["state"] != "finished":
        states = setting.train([job], seconds=1.0)
        seen.append(states["cut"]["epoch"])
        lots += 1
        assert lots < 20
    assert seen == sorted(seen) and seen[-1] == 4
    assert not (out / "state.safetensors").exists() and (out / RESULT_FILE).exists()
    before = (out / "model.safetensors").read_bytes()
    assert setting.train([job])["cut"]["state"] == "finished"
    assert (out / "model.safetensors").read_bytes() == before


def test_workers_share_the_jobs_and_a_bad_one_does_not_stop_the_others(setting: Setting) -> None:
    broken = TrainingJob(
        "broken", "tests.networks:no_such", setting.folder / "weights.safetensors",
        setting.folder / "start", Recipe(1),
    )  # fmt: skip
    jobs = [broken, setting.job("first", 1), setting.job("second", 1), setting.job("wild", 1, rate=1e30)]  # fmt: skip
    states = setting.train(jobs, processes=2, stack=1)
    assert [states[name]["state"] for name in ("first", "second")] == ["finished"] * 2
    assert states["broken"]["state"] == states["wild"]["state"] == "failed"
    assert "no_such" in str(states["broken"]["reason"])
    assert "diverged" in str(states["wild"]["reason"])


def test_names_must_differ(setting: Setting) -> None:
    with pytest.raises(TrainingError, match="same name"):
        setting.train([setting.job("twin"), setting.job("twin")])


@pytest.mark.parametrize("keep", [True, False])
def test_zeros_of_the_start_stay_where_the_job_asks_for_it(setting: Setting, keep: bool) -> None:
    path, share = "blocks.1.conv2", 0.75
    layers = frozenset(layer.path for layer in setting.compressor.structure.layers)
    few = Choices(integer=layers, weight_bits={path: 2}, sparsity={path: share})
    plan = setting.compressor.compress(few).plan
    start = setting.compressor.compress(Choices(sparsity={path: share})).network
    folder = setting.folder / f"zeros-{keep}"
    folder.mkdir()
    save(start, plan, folder)
    job = dataclasses.replace(setting.job(folder.name, rate=0.5), start=folder, keep_zeros=keep)
    assert setting.train([job])[job.name]["state"] == "finished"
    trained = load_file(setting.folder / "out" / job.name / "model.safetensors")
    zero = start.get_submodule(path).weight == 0
    assert bool((trained[f"{path}.weight"][zero] == 0).all()) == keep
    # A negative zero would be a fourth symbol of a ternary weight in the packed file.
    assert not any(torch.signbit(w[w == 0]).any() for w in trained.values())
