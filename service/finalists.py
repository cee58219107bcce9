"""From trials to a measured winner: step 8 of a job's way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import load_file

from compressors import Compressed
from compressors.exporter import export_onnx, save_onnx
from compressors.finetuning import STATE_FILE, Recipe, finetune, folded, trainable
from evaluation.scoring import ScorerBuilder
from evaluation.tuning import Tuner
from search_spaces import Evaluation, Policy, Pricer
from service.anchors import measure_quietly
from service.job_setup import JobSetup
from service.price_setup import Prices
from service.search_loop import Trial

# How often the prices are corrected before the best so far is returned with its violation.
MOST_CORRECTIONS = 5
MEASURE_SECONDS = 2.0
# Excluded trials that are brought back within the budget after each correction.
REPAIRED = 3
# A finalist that leaves more than this share of the latency bound unused is grown into it.
SLACK = 0.06
# How often, and how well prices near a network that was just timed are trusted.
GROWN = 2
NEARBY_ERROR = 0.02

Stage = Callable[[str, str, int, int], None]


@dataclass(frozen=True)
class Finalist:
    """A policy whose exported file was measured.

    Attributes:
        trial: the trial it came from, or None where it was made by correcting prices.
        ratio: measured latency over the uncompressed network's, in one run.
        violations: bounds that the measured file misses, as fractions of them.
    """

    policy: Policy
    compressed: Compressed
    evaluation: Evaluation
    file: Path
    ratio: float
    violations: dict[str, float]

    @property
    def met(self) -> bool:
        return not self.violations


def best_first(
    trials: list[Trial], pricer: Pricer, objective: str, max_drop: float | None
) -> list[tuple[Policy, Evaluation]]:
    """Distinct policies within the bounds as the pricer knows them now, the most wanted first.

    For ``accuracy`` by search score. For ``latency``: those whose estimated drop keeps ``max_drop`` by latency,
    then the others by drop.
    """
    seen: dict[Policy, Evaluation] = {}
    for trial in trials:
        if isinstance(trial.outcome, Evaluation) and pricer.within(trial.policy):
            seen.setdefault(trial.policy, trial.outcome)
    if objective == "accuracy":
        return sorted(seen.items(), key=lambda item: -item[1].score)

    def wanted(item: tuple[Policy, Evaluation]) -> tuple[bool, float]:
        drop = item[1].top1_drop[0] if item[1].top1_drop is not None else 1.0
        assert max_drop is not None
        late = drop > max_drop
        return late, drop if late else pricer.costs(item[0])["latency_ms"]

    return sorted(seen.items(), key=wanted)


class FinalistPicker:
    """Exports candidates, measures them beside the uncompressed network and corrects prices by what it sees.

    Args:
        setup: the job.
        prices: what the search went by.
        limits: the job's bounds.
        workdir: exported files go into its hidden folder.
        check, stage: as everywhere.
    """

    def __init__(
        self,
        setup: JobSetup,
        prices: Prices,
        limits: dict[str, float],
        workdir: Path,
        check: Callable[[], None],
        stage: Stage,
    ) -> None:
        self._setup = setup
        self._prices = prices
        self.pricer = prices.pricer.with_limits(limits)
        self._folder = workdir / ".finalists"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._check = check
        self._stage = stage
        self._scorer = setup.scorer()
        self.corrections: list[float] = []
        self.repaired = self.grown = 0

    def pick(self, trials: list[Trial], count: int) -> list[Finalist]:
        """At most ``count`` finalists that keep the budget when measured.

        Where fewer do after ``MOST_CORRECTIONS`` corrections, those that do; where none does, the one that comes
        nearest.
        """
        spec = self._setup.spec
        accepted: list[Finalist] = []
        refused: list[Finalist] = []
        tried: set[Policy] = set()
        while len(accepted) < count:
            self._check()
            candidate = next(
                (
                    c
                    for c in best_first(trials, self.pricer, spec.objective, spec.max_drop)
                    if c[0] not in tried
                ),
                None,
            )
            if candidate is None and accepted:
                break
            policy = candidate[0] if candidate else self._made_to_fit(trials)
            if policy in tried:
                break
            tried.add(policy)
            self._stage(
                "finalists", f"exporting and measuring policy {policy.digest}", len(tried), 0
            )
            finalist = self.measure(policy, candidate[1] if candidate else None)
            (accepted if finalist.met else refused).append(finalist)
            if not finalist.met:
                if len(refused) > MOST_CORRECTIONS:
                    break
                self._correct(finalist)
                trials = [*trials, *self._repaired(trials)]
        if accepted:
            return [self._grown(finalist) for finalist in accepted]
        return sorted(refused, key=lambda f: max(f.violations.values()))[:1]

    def measure(self, policy: Policy, evaluation: Evaluation | None = None) -> Finalist:
        """Compresses, exports and times one policy."""
        compressed = self._scorer.compress(policy)
        if evaluation is None:
            evaluation = self._scorer.score_compressed(compressed)
        file = self._folder / f"{policy.digest}.onnx"
        save_onnx(export_onnx(compressed.network, compressed.plan, self._setup.target.batch), file)
        ratio, violations = self.check_file(file, policy)
        return Finalist(policy, compressed, evaluation, file, ratio, violations)

    def check_file(self, file: Path, policy: Policy) -> tuple[float, dict[str, float]]:
        """Measured latency ratio and violated bounds of an exported file."""
        measured = measure_quietly(
            self._setup.target,
            {"baseline": self._prices.baseline, "it": file},
            seconds=MEASURE_SECONDS,
        )
        ratio = measured.ratio("it", "baseline")
        have = {
            "latency_ms": self._prices.uncompressed["latency_ms"] * ratio,
            "size_bytes": float(file.stat().st_size),
            "macs": self.pricer.costs(policy)["macs"],
        }
        violations = {
            q: have[q] / v - 1 for q, v in self.pricer.limits.items() if have[q] > v * (1 + 1e-9)
        }
        return ratio, violations

    def _correct(self, missed: Finalist) -> None:
        """Learns prices again from what was measured; what is left of the miss is a factor on all of them."""
        costs = self.pricer.costs(missed.policy)
        if "latency_ms" in missed.violations:
            measured = self._prices.uncompressed["latency_ms"] * missed.ratio
            self.corrections.append(measured / costs["latency_ms"])
            uses = self._setup.target.kernels(missed.file)
            self._prices = self._prices.with_finalist(uses, missed.ratio)
            models = {**self.pricer.models, "latency_ms": self._prices.pricer.models["latency_ms"]}
            self.pricer = Pricer(self.pricer.space, models, self.pricer.limits)
            if self.pricer.within(missed.policy):
                # The upper end of the interval is held against the bound; a miss all the same asks for more.
                again = measured / self.pricer.costs(missed.policy)["latency_ms"]
                self.pricer = self.pricer.corrected("latency_ms", max(again, 1.01))
        if "size_bytes" in missed.violations:
            self.pricer = self.pricer.corrected(
                "size_bytes", max(missed.file.stat().st_size / costs["size_bytes"], 1.001)
            )

    def _grown(self, finalist: Finalist) -> Finalist:
        """The finalist, or a larger one that keeps the budget too and scores better.

        The search keeps clear of the bound by the prices' uncertainty. Around a network that was just timed
        prices are far surer, and what it left unused can be spent.
        """
        bound = self.pricer.limits.get("latency_ms")
        if self._setup.spec.objective != "accuracy" or bound is None:
            return finalist
        for _ in range(GROWN):
            measured = self._prices.uncompressed["latency_ms"] * finalist.ratio
            if measured > (1 - SLACK) * bound:
                break
            model = self.pricer.models["latency_ms"]
            here = model.scaled(measured / self.pricer.costs(finalist.policy)["latency_ms"])
            models = {
                **self.pricer.models,
                "latency_ms": replace(here, relative_error=NEARBY_ERROR),
            }
            near = Pricer(self.pricer.space, models, self.pricer.limits)
            policy = near.fill(finalist.policy)
            if policy == finalist.policy:
                break
            self._check()
            self._stage("finalists", f"growing policy {finalist.policy.digest}", self.grown, 0)
            larger = self.measure(policy)
            self.grown += 1
            if not larger.met or larger.evaluation.score <= finalist.evaluation.score:
                break
            finalist = larger
        return finalist

    def _repaired(self, trials: list[Trial]) -> list[Trial]:
        """The best trials that the corrected prices exclude, brought back within the budget and scored.

        A correction can exclude everything the search had converged to; what is left may be far worse than
        a slightly smaller version of the best.
        """
        spec = self._setup.spec
        free = self.pricer.with_limits({})
        known = {t.policy for t in trials}
        made: list[Trial] = []
        for policy, _ in best_first(trials, free, spec.objective, spec.max_drop)[:REPAIRED]:
            repaired = self.pricer.repair(policy)
            if repaired not in known and self.pricer.within(repaired):
                self._check()
                known.add(repaired)
                self._stage("finalists", f"repairing policy {policy.digest}", len(made), REPAIRED)
                made.append(Trial(-1, repaired, self._scorer.score(repaired)))
        self.repaired += len(made)
        return made

    def _made_to_fit(self, trials: list[Trial]) -> Policy:
        """No trial keeps the corrected prices: the best one, clipped until it does."""
        found = [t for t in trials if isinstance(t.outcome, Evaluation)]
        wanted = (
            max(
                found, key=lambda t: t.outcome.score if isinstance(t.outcome, Evaluation) else 0.0
            ).policy
            if found
            else self.pricer.space.uncompressed()
        )
        return self.pricer.repair(wanted)


def finetuned(
    setup: JobSetup,
    finalists: list[Finalist],
    tuner: Tuner,
    builder: ScorerBuilder,
    workdir: Path,
    stage: Stage,
) -> tuple[list[tuple[Finalist, Compressed, Evaluation]], list[str]]:
    """Fine-tunes finalists with the original as teacher and quantizes them anew.

    Returns:
        Each trained finalist with its new network and its search score, and notes for the report.
    """
    spec = setup.spec
    stage(
        "finetune", f"training {len(finalists)} finalists for {spec.finetune.epochs} epochs", 0, 0
    )
    recipe = Recipe(spec.finetune.epochs, augment=_augment(setup), seed=spec.agent.seed)
    dataset = setup.data.train if setup.data.finetune is None else setup.data.finetune
    train = TrainFinalist(setup, finalists, dataset, recipe, builder)
    # A later attempt may pick other finalists; each set has checkpoints of its own.
    root = workdir / ".finetune" / "-".join(f.policy.digest for f in finalists)
    tuned = tuner.run(train, range(len(finalists)), spec.finetune.epochs, root)
    scorer = setup.scorer()
    results = []
    notes = []
    for one in tuned:
        finalist = finalists[one.finalist]
        plan = finalist.compressed.plan
        network = trainable(setup.network.prepared, finalist.compressed.network, plan)
        network.load_state_dict(load_file(one.directory / STATE_FILE))
        choices = setup.network.network_space.choices(finalist.policy)
        compressed = setup.compressor.requantize(folded(network, plan), choices)
        results.append((finalist, compressed, scorer.score_compressed(compressed)))
        if one.epochs < spec.finetune.epochs:
            notes.append(
                f"finalist {finalist.policy.digest} was stopped after {one.epochs} of {spec.finetune.epochs} epochs"
            )
    return results, notes


def _augment(setup: JobSetup) -> str:
    # A data source with an augmented split of its own needs no second augmentation.
    return "none" if setup.data.finetune is not None else setup.spec.finetune.augment


@dataclass
class TrainFinalist:
    """``evaluation.tuning.TrainOne`` over a list of finalists; travels to a worker."""

    setup: JobSetup
    finalists: list[Finalist]
    dataset: object
    recipe: Recipe
    builder: ScorerBuilder

    def __call__(self, index: int, directory: Path, report: Callable[[int, float], None]) -> None:
        finalist = self.finalists[index]
        plan = finalist.compressed.plan
        network = trainable(self.setup.network.prepared, finalist.compressed.network, plan)
        scorer = self.builder()

        def after(epoch: int, trained: object) -> None:
            from torch import nn

            assert isinstance(trained, nn.Module)
            report(epoch, scorer.score_network(trained).score)

        finetune(
            network,
            self.setup.network.folded,
            self.dataset,
            self.setup.splits.training,
            self.recipe,
            directory,
            after,
        )
