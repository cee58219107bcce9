"""What a job may name: models, data, targets, tables, agents. And the dry run of a job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body
from starlette.concurrency import run_in_threadpool

from service.examples import JOB_EXAMPLES
from service.job_spec import AGENTS, CRITERIA, JobSpec
from service.planner import run_plan
from service.plugins import Plugin
from service.services import Given
from service.sources import DATA_FORMS, MODEL_FORMS

router = APIRouter(prefix="/v1", tags=["catalog"])

_AGENT_NOTES = {
    "auto": "what we recommend: evolution, in turns with a Gaussian process that picks children",
    "amc": "learns layer by layer with DDPG (He et al. 2018)",
    "haq": "learns bits layer by layer with DDPG (Wang et al. 2019)",
    "ddpg": "DDPG of stable-baselines3 on an episode a policy",
    "td3": "TD3 of stable-baselines3 on an episode a policy",
    "sac": "SAC of stable-baselines3 on an episode a policy",
    "ppo": "PPO of stable-baselines3, on-policy",
    "tpe": "Optuna's tree-structured Parzen estimators",
    "nsga2": "Optuna's NSGA-II",
    "cmaes": "covariance matrix adaptation (Hansen)",
    "gp": "Optuna's Gaussian process",
    "evolution": "aging evolution (Real et al. 2019) with crossover",
    "greedy": "a step at a time towards the budget (NetAdapt, Yang et al. 2018)",
    "dp": "sensitivities of single decisions, then exact dynamic programming over the prices",
    "random": "draws policies within the budget",
    "uniform": "the same ratio and precision everywhere, a reference",
}
_CRITERION_NOTES = {
    "l1": "sum of the weights' magnitudes (Li et al. 2016)",
    "l2": "Euclidean norm of the weights",
    "bn_scale": "size of the batch norms' gains (network slimming, Liu et al. 2017)",
    "geometric_median": "distance of a filter to all others (FPGM, He et al. 2019)",
    "taylor": "first-order change of the loss without the channel (Molchanov et al. 2019)",
    "fisher": "second-order change of the loss without the channel (Theis et al. 2018)",
    "random": "none, a control",
}
_MODEL_EXAMPLES = {
    "timm": ["timm:mobilenetv3_small_100", "timm:vit_tiny_patch16_224"],
    "torchvision": ["torchvision:mobilenet_v2", "torchvision:resnet18"],
}


@router.get("/models")
def list_models(services: Given) -> dict[str, Any]:
    """Kinds of model sources. ``allowed`` lists the Python factories the operator lets users
    name.
    """
    return {
        "items": [
            {
                "kind": kind,
                "form": form,
                "examples": _MODEL_EXAMPLES.get(kind, []),
                "allowed": list(services.sources.allow) if kind == "python" else None,
            }
            for kind, form in MODEL_FORMS.items()
        ]
    }


@router.get("/data")
def list_data(services: Given) -> dict[str, Any]:
    """Kinds of data sources, with what the operator allows of each; None means all of them."""
    sources = services.sources
    allowed = {
        "digits": None,
        "imagefolder": [f"imagefolder:{name}" for name in sorted(sources.image_folders)],
        "torchvision": [] if sources.torchvision_root is None else None,
        "python": list(sources.allow),
    }
    return {
        "items": [
            {"kind": kind, "form": form, "allowed": allowed.get(kind)}
            for kind, form in DATA_FORMS.items()
        ]
    }


@router.get("/targets")
def list_targets(services: Given) -> dict[str, Any]:
    """Targets a job may name, with their options at their defaults: ours, the tables that are targets by their name,
    and those of plug-ins, with the reason where one cannot be used."""
    return {"items": services.targets()}


@router.get("/tables")
def list_tables(services: Given) -> dict[str, Any]:
    """Latency tables: measured here, imported, and those that come with Trimtab."""
    from latency_tables.catalog import Catalog
    from latency_tables.layer_table import LayerTable

    catalog = Catalog.of(services.settings.data_dir)
    items = []
    for name in catalog.tables:
        table = catalog.table(name)
        items.append(
            {
                "name": name,
                "kind": "layers" if isinstance(table, LayerTable) else "kernels",
                "shipped": catalog.is_shipped(name),
                "target": table.target,
                "device_class": table.device_class,
                "created": table.created,
                "rows": len(table),
                "digest": table.digest,
            }
        )
    return {"items": items}


@router.get("/agents")
def list_agents(services: Given) -> dict[str, Any]:
    """Agents a job may name: ours, then those of plug-ins, with the reason where one cannot be used."""
    own = [Plugin(name, "trimtab", _AGENT_NOTES[name]) for name in AGENTS]
    return {"items": [_item(agent) for agent in (*own, *services.agent_plugins)]}


@router.get("/criteria")
def list_criteria(services: Given) -> dict[str, Any]:
    """Criteria that ``space.criterion`` may name: ours, then those of plug-ins, with the reason where one cannot be
    used."""
    own = [Plugin(name, "trimtab", _CRITERION_NOTES[name]) for name in CRITERIA]
    return {"items": [_item(criterion) for criterion in (*own, *services.criterion_plugins)]}


def _item(plugin: Plugin) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "summary": plugin.summary,
        "distribution": plugin.distribution,
        "unusable": plugin.error,
    }


@router.post("/plans", tags=["jobs"])
async def plan_job(
    services: Given, spec: Annotated[JobSpec, Body(openapi_examples=JOB_EXAMPLES)]
) -> dict[str, Any]:
    """The dry run: decisions, smallest reachable budget, estimated time. Nothing is stored."""
    await run_in_threadpool(services.check, spec)
    weights: Path | None = None
    if spec.model.weights is not None:
        stored = await run_in_threadpool(services.store.weights, spec.model.weights)
        weights = await run_in_threadpool(services.blobs.local, stored.path)
    async with services.plans:
        return await run_plan(services.settings, spec, weights)
