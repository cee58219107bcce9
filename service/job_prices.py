"""Prices of a job's policies on all of its targets, under the one set of names that its search goes by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from latency_tables import Target
from search_spaces import Budget, BudgetError, Pricer
from search_spaces.budget import BUDGET_KEYS, PACKED
from service.context import JobContext
from service.job_setup import JobSetup
from service.job_spec import JobSpec
from service.price_setup import learn_prices
from service.prices import Prices
from service.provenance import prediction_notes
from service.targets import JobTarget


@dataclass(frozen=True)
class TargetPrices:
    """One target and what is known of its costs."""

    of: JobTarget
    prices: Prices

    @property
    def target(self) -> Target:
        return self.of.target


@dataclass(frozen=True)
class JobPrices:
    """See the module's docstring.

    The first target's quantities have their plain names, so that a job with one target is one without others.

    Attributes:
        places: the targets, in their order.
    """

    places: tuple[TargetPrices, ...]

    @classmethod
    def of(cls, targets: Sequence[JobTarget], prices: Sequence[Prices]) -> JobPrices:
        """One each, in the same order."""
        return cls(tuple(TargetPrices(*pair) for pair in zip(targets, prices, strict=True)))

    @property
    def first(self) -> Prices:
        """Prices on the first target."""
        return self.places[0].prices

    @cached_property
    def pricer(self) -> Pricer:
        """Every quantity of every target, without bounds."""
        models = {
            place.of.quantity(quantity): model
            for place in reversed(self.places)
            for quantity, model in place.prices.pricer.models.items()
        }
        # The first's come first, whoever else knows them.
        order = [
            *self.first.pricer.models,
            *(q for q in models if q not in self.first.pricer.models),
        ]
        return Pricer(self.first.pricer.space, {q: models[q] for q in order})

    @cached_property
    def uncompressed(self) -> dict[str, float]:
        """Quantities of the uncompressed network, by the job's names."""
        return {
            place.of.quantity(quantity): value
            for place in reversed(self.places)
            for quantity, value in place.prices.uncompressed.items()
        }

    @property
    def measurable(self) -> bool:
        """Whether any of the targets is here, so that networks can be timed."""
        return any(place.target.can_measure for place in self.places)

    def said(self, place: int) -> str:
        """What a note about one target begins with; nothing where there are no others."""
        return f"{self.places[place].of.name}: " if len(self.places) > 1 else ""

    @property
    def notes(self) -> list[str]:
        """What a reader of the report must know of the prices."""
        return [
            self.said(k) + note
            for k, place in enumerate(self.places)
            for note in place.prices.notes
        ]

    def prediction_notes(self) -> list[str]:
        """What a reader must know where nothing was timed."""
        return [
            self.said(k) + note
            for k, place in enumerate(self.places)
            for note in prediction_notes(place.target, place.prices)
        ]

    def with_prices(self, place: int, prices: Prices) -> JobPrices:
        """The same with prices learned anew on one target."""
        changed = list(self.places)
        changed[place] = replace(changed[place], prices=prices)
        return JobPrices(tuple(changed))

    def limits_on(self, place: int) -> dict[str, float]:
        """Absolute bounds of one target's own budget, by their plain names.

        Raises:
            BudgetError: a fraction is asked of a quantity that the target does not know.
        """
        of = self.places[place].of
        return Budget.of(of.budget).limits(of.own(self.uncompressed)) if of.budget else {}

    def limits(self) -> dict[str, float]:
        """Absolute bounds of all targets' budgets; the tighter where two bound what they share.

        Raises:
            BudgetError: as ``limits_on``.
        """
        found: dict[str, float] = {}
        for number, place in enumerate(self.places):
            for quantity, limit in self.limits_on(number).items():
                name = place.of.quantity(quantity)
                found[name] = min(limit, found.get(name, limit))
        return found


def limits_of(spec: JobSpec, prices: JobPrices) -> dict[str, float]:
    """Absolute bounds of the job.

    Raises:
        BudgetError: the uncompressed network meets all of them already, and the job wants no front.
    """
    limits = prices.limits()
    met = all(prices.uncompressed[quantity] <= limit for quantity, limit in limits.items())
    if limits and met and spec.objective != "pareto":
        have = ", ".join(
            f"{q} {prices.uncompressed[q]:.6g} (bound {v:.6g})" for q, v in limits.items()
        )
        raise BudgetError(
            f"the uncompressed network already meets the budget in full: {have}; lower a bound"
        )
    return limits


def learn_job_prices(setup: JobSetup, context: JobContext, workdir: Path) -> JobPrices:
    """Learns the prices of every target, one after the other: only one of them is timed at a time.

    Args:
        workdir: gets the exported uncompressed network, in a folder a target.

    Raises:
        TrimtabError: as ``learn_prices``.
    """
    packed = _bounds_on_packed(setup.targets)
    found = []
    for one in setup.targets:
        folder = workdir / f"target{one.place}"
        folder.mkdir(parents=True, exist_ok=True)
        own = {key: v for key, v in one.spec.priced.items() if BUDGET_KEYS[key][0] != PACKED}
        found.append(
            learn_prices(
                setup.compressor,
                setup.network.network_space,
                one.target,
                context.data_dir,
                folder,
                context.stage,
                context.check,
                setup.spec.space.exclude,
                # The packed file is the same for all: its price is learned once.
                own | packed if one.place == 0 else own,
                one.pin(context.pin),
                common=setup.common,
            )
        )
    return JobPrices.of(setup.targets, found)


def _bounds_on_packed(targets: Sequence[JobTarget]) -> dict[str, float]:
    """All targets' bounds on the packed file, in the contract's keys."""
    bounds: dict[str, float] = {}
    for one in targets:
        for key, bound in one.spec.priced.items():
            if BUDGET_KEYS[key][0] == PACKED:
                bounds[key] = min(bound, bounds.get(key, bound))
    return bounds
