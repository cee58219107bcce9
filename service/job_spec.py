"""What a user asks for: the body of ``POST /v1/jobs`` and the options of ``trimtab compress``."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from search_spaces.budget import BUDGET_KEYS, Budget

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


# Those of compressors.calibration, which loads torch, too.
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


class SpaceSpec(_Strict):
    scope: Literal["prune", "quantize", "joint"] = "joint"
    exclude: tuple[str, ...] = Field(default=(), description="module paths left as they are")
    criterion: Literal["l1", "l2", "bn_scale", "geometric_median", "taylor", "fisher", "random"] = (
        Field(default="fisher", description="which channels of a group go first")
    )


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
    adaround: bool = Field(
        default=False,
        description="weights of finalists are rounded by what reconstructs their layer's output best; the search "
        "itself rounds to the nearest",
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
            "adaround": self.adaround,
        }
        return [name for name, chosen in asked.items() if chosen]


class AgentSpec(_Strict):
    name: str = "auto"
    evaluations: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


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


Cost = Literal["latency", "energy", "size", "packed_size", "macs"]
# Share of the uncompressed network's around which prices are exact where a cost of a front has no bound.
_UNBOUNDED = 0.5


class JobSpec(_Strict):
    """One compression job. Raises ValueError (pydantic) with the field named where something is off."""

    name: Annotated[str, Field(max_length=200)] = ""
    model: ModelSpec
    data: DataSpec
    target: str = "x86-ort"
    budget: dict[str, float]
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
        if isinstance(value, dict) and value:
            return Budget.of(value).to_json()
        return value

    @model_validator(mode="after")
    def _objective_has_its_bound(self) -> JobSpec:
        if self.objective == "latency" and self.max_drop is None:
            raise ValueError("objective latency needs max_drop, e.g. 0.005 for half a point")
        if self.objective == "accuracy" and not self.budget:
            raise ValueError('objective accuracy needs a budget, e.g. {"latency": 0.5}')
        if self.objective == "accuracy" and self.max_drop is not None:
            raise ValueError("max_drop belongs to objective latency")
        return self

    @model_validator(mode="before")
    @classmethod
    def _one_target(cls, data: Any) -> Any:
        if isinstance(data, dict) and "targets" in data:
            raise ValueError(
                "targets: a job for several targets is not possible yet; submit one job a target with target and budget"
            )
        return data

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
        return self

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
