"""What a user asks for: the body of ``POST /v1/jobs`` and the options of ``trimtab compress``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from search_spaces.bit_widths import BitWidths
from search_spaces.budget import BUDGET_KEYS, Budget, bounds_packed
from search_spaces.errors import BudgetError, SpaceError

# The names of agents.registry, which is not imported here: it loads torch, and a client need not.
AGENTS = (
    "auto",
    "amc",
    "haq",
    "ddpg",
    "td3",
    "sac",
    "ppo",
    "tpe",
    "nsga2",
    "cmaes",
    "gp",
    "evolution",
    "greedy",
    "dp",
    "random",
    "uniform",
)


# Agents that have a form as published, with the scope that can be expressed by it.
_PUBLISHED = {"amc": "prune", "haq": "quantize"}
# Those of compressors.importance and compressors.calibration, which load torch, too.
CRITERIA = ("l1", "l2", "bn_scale", "geometric_median", "taylor", "fisher", "random")
CALIBRATIONS = ("minmax", "percentile", "mse", "entropy")
_PERCENT = re.compile(r"[0-9]+(\.[0-9]+)?")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(_Strict):
    source: str = Field(description="timm:NAME, torchvision:NAME or python:MODULE:FACTORY")
    weights: str | None = Field(default=None, description="id from POST /v1/weights")


class DataSpec(_Strict):
    source: str = Field(
        description="digits, imagefolder:NAME, torchvision:NAME or python:MODULE:FACTORY"
    )


class BitsSpec(_Strict):
    """Bits that layers choose among, on targets that compute with fewer than 8."""

    weights: tuple[int, ...] = Field(default=(8,), description="of weights, 2 to 8 with 8 itself")
    activations: tuple[int, ...] = Field(
        default=(8,),
        description="of what a layer reads, 2 to 8 with 8 itself; float is offered beside them",
    )

    @field_validator("weights", "activations")
    @classmethod
    def _in_order(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _something_is_offered(self) -> BitsSpec:
        try:
            BitWidths(self.weights, self.activations)
        except SpaceError as error:
            # As an error of this field.
            raise ValueError(str(error)) from error
        return self


class SpaceSpec(_Strict):
    scope: Literal["prune", "quantize", "joint"] = "joint"
    exclude: tuple[str, ...] = Field(default=(), description="module paths left as they are")
    criterion: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        default="fisher",
        description=f"which channels of a group go first: {', '.join(CRITERIA)}, or a plug-in's",
    )
    zeros: Literal["anywhere", "1:2", "1:4", "2:4", "3:4", "4:8"] = Field(
        default="anywhere",
        description="where zeros lie that a bound on packed bytes may want; N:M: N of every M weights along a layer's "
        "input stay",
    )

    bits: BitsSpec | None = Field(
        default=None,
        description="bits of weights and activations to choose among layer by layer, where the target runs them "
        "(sim-bitfusion); null: 8 and float",
    )

    @model_serializer(mode="wrap")
    def _document(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)
        # Jobs without are the same documents as before there was a choice.
        if self.bits is None:
            document.pop("bits", None)
        return document

    @property
    def widths(self) -> BitWidths | None:
        """Bits that layers choose among; None for 8 and float."""
        return None if self.bits is None else BitWidths(self.bits.weights, self.bits.activations)

    @property
    def pattern(self) -> tuple[int, int] | None:
        """N and M; None where zeros lie anywhere."""
        if self.zeros == "anywhere":
            return None
        kept, _, of = self.zeros.partition(":")
        return int(kept), int(of)


class RecipeSpec(_Strict):
    """How a policy becomes a network without training, besides ``space.criterion``."""

    refit: bool = Field(
        default=True, description="layers that read fewer channels are solved anew by least squares"
    )
    statistics: bool | None = Field(
        default=None,
        description="statistics of batch norms behind pruned layers are brought back; null: in jobs that fine-tune",
    )
    calibration: str = Field(
        default="minmax",
        description="how activation ranges are found: minmax, percentile (99.99 %), percentile:P, mse or entropy",
    )
    bias_correction: bool | None = Field(
        default=None,
        description="mean and spread of each layer's output are brought back after quantization; null: where a layer "
        "has weights of fewer than 8 bits",
    )
    equalization: bool = Field(
        default=False, description="weight ranges of neighbouring layers are evened out"
    )
    adaround: bool | None = Field(
        default=None,
        description="weights of finalists are rounded by what reconstructs their layer's output best, where that "
        "scores better; the search itself rounds to the nearest; null: those with weights of fewer than 8 bits, in "
        "jobs that do not fine-tune",
    )

    @field_validator("calibration")
    @classmethod
    def _calibration_exists(cls, value: str) -> str:
        name, _, percent = value.partition(":")
        if name in CALIBRATIONS and not (percent or value.endswith(":")):
            return value
        if name != "percentile" or not _PERCENT.fullmatch(percent):
            raise ValueError(
                f"no calibration {value!r}; there are {', '.join(CALIBRATIONS)} and percentile:P as in percentile:99.9"
            )
        if not 50 < float(percent) <= 100:
            raise ValueError(
                f"calibration {value!r}: the percentile must be above 50 and at most 100"
            )
        return value

    @property
    def quantizing(self) -> list[str]:
        """The fields that were chosen and concern quantization alone."""
        asked = {
            "calibration": self.calibration != "minmax",
            "bias_correction": bool(self.bias_correction),
            "equalization": self.equalization,
            "adaround": bool(self.adaround),
        }
        return [name for name, chosen in asked.items() if chosen]


class AgentSpec(_Strict):
    name: str = "auto"
    evaluations: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    published: bool | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="of amc and haq: as their papers have them, or (false) fitted to few evaluations and all "
        "decisions; null: as published where that can express the whole space",
    )


class FinetuneSpec(_Strict):
    epochs: Annotated[int, Field(ge=0, le=10_000)] = 0
    finalists: Annotated[int, Field(ge=1, le=50)] = 3
    augment: Literal["none", "crop_flip", "crop_flip_cutout"] = "crop_flip"
    features: Annotated[float, Field(ge=0, le=100)] = Field(
        default=0.0, description="weight of the distance between feature maps beside that of logits"
    )
    gradual: bool = Field(
        default=False, description="channels fade out while training instead of being gone before"
    )
    temperature: Annotated[float, Field(ge=0.1, le=100)] = Field(
        default=4.0,
        description="softens the outputs of original and student that training compares",
    )


def _known_budget(value: Any) -> Any:
    """Bounds with their keys and values checked; an empty budget is for the objective to judge."""
    if isinstance(value, dict) and value:
        return Budget.of(value).to_json()
    return value


TargetName = Annotated[str, Field(max_length=200)]


class TargetSpec(_Strict):
    """One of several targets, with the budget that is to hold on it."""

    name: TargetName = Field(description="as target: a device with its options, or a table's name")
    budget: dict[str, float] = Field(description="bounds on this target, its own network's costs")

    @field_validator("budget", mode="before")
    @classmethod
    def _budget_is_known(cls, value: Any) -> Any:
        try:
            return _known_budget(value)
        except BudgetError as error:
            # As an error of this field, which says of which target.
            raise ValueError(str(error)) from error


Cost = Literal["latency", "energy", "size", "packed_size", "macs"]
# Targets of one job: every one has its own kernels to be timed and its own files to be measured.
MOST_TARGETS = 4
# Costs of a front on several targets: the time its hypervolume takes grows many times over with each.
MOST_COSTS = 4


def target_names(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The targets of a job's document, as it is stored."""
    targets = document.get("targets")
    if targets is None:
        return (document["target"],)
    return tuple(target["name"] for target in targets)


class _BothGiven:
    """Stands for ``targets`` beside ``target`` or ``budget``, so that the error names the field."""


def _either_needed(schema: dict[str, Any]) -> None:
    """``budget`` is needed without ``targets`` only."""
    schema["required"] = [name for name in schema["required"] if name != "budget"]
    schema["oneOf"] = [{"required": ["budget"]}, {"required": ["targets"]}]


# Share of the uncompressed network's around which prices are exact where a cost of a front has no bound.
_UNBOUNDED = 0.5


class JobSpec(_Strict):
    """One compression job. Raises ValueError (pydantic) with the field named where something is off.

    A job for several targets has ``targets`` in the place of ``target`` and ``budget``; these two are then the first
    one's, and no part of the document that the spec becomes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_either_needed)

    name: Annotated[str, Field(max_length=200)] = ""
    model: ModelSpec
    data: DataSpec
    target: TargetName = "x86-ort"
    budget: dict[str, float]
    targets: tuple[TargetSpec, ...] | None = Field(
        default=None,
        description=f"instead of target and budget: 1 to {MOST_TARGETS} targets, each with its own budget; one network "
        "is to keep all of them",
    )
    objective: Literal["accuracy", "latency", "pareto"] = "accuracy"
    max_drop: Annotated[float, Field(gt=0, lt=1)] | None = None
    costs: tuple[Cost, ...] | None = Field(
        default=None,
        description="with objective pareto: what the score is held against; what the budget bounds where left out, and "
        "latency, size and, where the target knows it, energy where there is no budget",
    )
    space: SpaceSpec = SpaceSpec()
    recipe: RecipeSpec = RecipeSpec()
    agent: AgentSpec = AgentSpec()
    max_seconds: Annotated[float, Field(gt=0)] | None = None
    finetune: FinetuneSpec = FinetuneSpec()
    search_images: Annotated[int, Field(ge=16, le=1_000_000)] = 2000

    @field_validator("budget", mode="before")
    @classmethod
    def _budget_is_known(cls, value: Any) -> Any:
        return _known_budget(value)

    @model_validator(mode="before")
    @classmethod
    def _targets_stand_for_target_and_budget(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("targets") is None:
            return data
        if "target" in data or "budget" in data:
            return {"budget": {}, **data, "targets": _BothGiven()}
        given = data["targets"]
        try:
            first = TargetSpec.model_validate(given[0] if isinstance(given, list | tuple) else None)
        except (ValueError, IndexError):
            # The field itself says what is wrong with it.
            return {**data, "budget": {}}
        return {**data, "target": first.name, "budget": first.budget}

    @field_validator("targets", mode="before")
    @classmethod
    def _targets_are_few_and_distinct(cls, value: Any) -> Any:
        if isinstance(value, _BothGiven):
            raise ValueError(
                "targets takes the place of target and budget: leave these two out, or give no targets"
            )
        if not isinstance(value, list | tuple):
            return value
        if not 1 <= len(value) <= MOST_TARGETS:
            raise ValueError(
                f"a job has 1 to {MOST_TARGETS} targets, not {len(value)}; split it into several jobs"
                if value
                else 'targets is empty; give at least one, e.g. [{"name": "x86-ort", "budget": {"latency": 0.5}}]'
            )
        return value

    @model_validator(mode="after")
    def _targets_have_their_bounds(self) -> JobSpec:
        for place, target in enumerate(self.targets or ()):
            if target.budget or self.objective == "pareto":
                continue
            if self.objective == "accuracy":
                raise ValueError(
                    f"targets.{place}: objective accuracy needs a budget on every target; {target.name} has none, "
                    'e.g. {"latency": 0.5}'
                )
            if place > 0:
                raise ValueError(
                    f"targets.{place}: objective latency makes the network fast on the first target and bounds the "
                    f'others; {target.name} needs a budget, e.g. {{"latency": 0.8}}'
                )
        return self

    @model_validator(mode="after")
    def _objective_has_its_bound(self) -> JobSpec:
        if self.objective == "latency" and self.max_drop is None:
            raise ValueError("objective latency needs max_drop, e.g. 0.005 for half a point")
        if self.objective == "accuracy" and not self.budget:
            raise ValueError('objective accuracy needs a budget, e.g. {"latency": 0.5}')
        if self.objective == "accuracy" and self.max_drop is not None:
            raise ValueError("max_drop belongs to objective latency")
        return self

    @model_validator(mode="after")
    def _agent_can_express_the_scope(self) -> JobSpec:
        name, scope = self.agent.name, self.space.scope
        if name == "haq" and scope == "prune":
            raise ValueError(
                "agent haq decides bit widths, and scope prune has none; use scope quantize or joint, or agent amc"
            )
        if self.agent.published is not None and name not in _PUBLISHED:
            raise ValueError(
                f"agent.published belongs to {' and '.join(_PUBLISHED)}; leave it out for {name}"
            )
        if self.agent.published and scope != _PUBLISHED[name]:
            raise ValueError(
                f"{name} as published needs scope {_PUBLISHED[name]}, not {scope}; or leave agent.published out"
            )
        return self

    @model_validator(mode="after")
    def _recipe_has_an_effect(self) -> JobSpec:
        chosen = self.recipe.quantizing
        if chosen and self.space.scope == "prune":
            raise ValueError(
                f"recipe.{chosen[0]} concerns quantization, and scope prune quantizes nothing; "
                "leave it out or use scope joint"
            )
        if self.recipe.adaround and self.finetune.epochs:
            raise ValueError(
                "recipe.adaround is for networks that are not trained: fine-tuning trains the rounding itself; "
                "leave out one of them"
            )
        return self

    @model_validator(mode="after")
    def _zeros_have_an_effect(self) -> JobSpec:
        if self.space.pattern is None:
            return self
        if not self.packed:
            raise ValueError(
                f"space.zeros {self.space.zeros} needs a bound on packed bytes, e.g. packed_size 0.2: no runtime we "
                "export to is faster for zeros, so without one none are decided"
            )
        if self.space.scope == "quantize":
            raise ValueError(
                "space.zeros: scope quantize decides no zeros; use scope joint or prune"
            )
        return self

    @model_validator(mode="after")
    def _bits_can_be_decided(self) -> JobSpec:
        if self.space.bits is None:
            return self
        if self.space.scope == "prune":
            raise ValueError(
                "space.bits: scope prune decides no bits; use scope quantize or joint, or leave space.bits out"
            )
        if self.packed:
            raise ValueError(
                "space.bits: a bound on packed bytes decides bits of weights by itself; leave that bound or space.bits "
                "out"
            )
        return self

    @model_validator(mode="after")
    def _front_has_costs(self) -> JobSpec:
        if self.objective != "pareto":
            if self.costs is not None:
                raise ValueError("costs belongs to objective pareto")
            return self
        if self.max_drop is not None:
            raise ValueError("max_drop belongs to objective latency")
        if self.costs is not None and not self.costs:
            raise ValueError('objective pareto needs a cost, e.g. "costs": ["latency", "size"]')
        if self.costs is not None and len(set(self.costs)) != len(self.costs):
            raise ValueError(f"costs: each only once, not {', '.join(self.costs)}")
        if self.targets is not None and self.costs is not None:
            on_each = sum(cost in ("latency", "energy") for cost in self.costs)
            count = len(self.costs) + on_each * (len(self.targets) - 1)
            if count > MOST_COSTS:
                raise ValueError(
                    f"costs: {', '.join(self.costs)} on {len(self.targets)} targets are {count} costs, as latency and "
                    f"energy count on each; a front of more than {MOST_COSTS} takes too long to rank. Name fewer"
                )
        return self

    @model_serializer(mode="wrap")
    def _document(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)
        # As it was asked for; jobs with one target are the same document as before there could be several.
        for name in ("targets",) if self.targets is None else ("target", "budget"):
            document.pop(name, None)
        return document

    @property
    def places(self) -> tuple[TargetSpec, ...]:
        """The targets with their budgets, of a job with one target that one."""
        if self.targets is not None:
            return self.targets
        return (TargetSpec(name=self.target, budget=self.budget),)

    def alone(self, place: int) -> JobSpec:
        """The job as if it had this one of its targets only."""
        own = self.places[place]
        return self.model_copy(update={"target": own.name, "budget": own.budget, "targets": None})

    @property
    def priced(self) -> dict[str, float]:
        """What must be priced: the budget and, for a front, its costs as if they were bounded.

        Energy is not among the costs of a front that names none: it is one where the target turns out to know it.
        """
        if self.objective != "pareto":
            return self.budget
        costs = self.costs if self.costs is not None else () if self.budget else ("latency", "size")
        bounded = {BUDGET_KEYS[key][0] for key in self.budget}
        return {c: _UNBOUNDED for c in costs if BUDGET_KEYS[c][0] not in bounded} | self.budget

    @property
    def packed(self) -> bool:
        """Whether any target's budget bounds the packed file, or a front is held against it."""
        return any(bounds_packed(self.alone(place).priced) for place in range(len(self.places)))
