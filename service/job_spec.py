"""What a user asks for: the body of ``POST /v1/jobs`` and the options of ``trimtab compress``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from search_spaces.budget import Budget

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


class JobSpec(_Strict):
    """One compression job. Raises ValueError (pydantic) with the field named where something is off."""

    name: Annotated[str, Field(max_length=200)] = ""
    model: ModelSpec
    data: DataSpec
    target: str = "x86-ort"
    budget: dict[str, float]
    objective: Literal["accuracy", "latency"] = "accuracy"
    max_drop: Annotated[float, Field(gt=0, lt=1)] | None = None
    space: SpaceSpec = SpaceSpec()
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
