"""What was measured, on the artifact: ``report.json`` and the files beside it."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np

from compressors import Compressed
from compressors.low_rank import last_factor
from compressors.quantization import past_dropped
from compressors.structure import inside
from latency_tables import Target
from search_spaces import Policy
from search_spaces.pricing import UPPER_90
from search_spaces.ranks import factored_macs
from service.file_results import Comparison, Measured, drop_json
from service.job_setup import JobSetup
from service.packed_prices import weight_bytes
from service.prices import Prices
from service.provenance import latency_provenance
from service.search_loop import Trial

_PACKAGES = (
    "trimtab",
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxruntime",
    "ray",
    "numpy",
)

# Null where they were not made.
_REFERENCES = ("uniform_int8", "uniform_prune_int8")
# Stands in for them where nothing runs in int8.
_FLOAT_REFERENCE = "uniform_prune"


def layers_json(setup: JobSetup, policy: Policy, compressed: Compressed) -> list[dict[str, Any]]:
    """Every layer before and after, for the report's drawing."""
    network_space = setup.network.network_space
    space = network_space.space
    plan, choices = compressed.plan, network_space.choices(policy)
    blocks = [b.path for b in network_space.structure.blocks if b.path in plan.dropped]
    resolve = past_dropped(network_space.structure, plan.dropped)
    rows = []
    for layer in network_space.structure.layers:
        dropped = inside(layer.path, blocks)
        axes = plan.channels.get(layer.path, {})
        out = len(axes.get("out", axes.get("both", range(layer.out_channels))))
        into = len(axes.get("in", axes.get("both", range(layer.in_channels))))
        share = out / layer.out_channels
        if layer.kind != "depthwise":
            share *= into / layer.in_channels
        macs, ranks = layer.macs * share, plan.ranks.get(layer.path)
        if ranks is not None:
            widths = (np.array(float(n)) for n in (ranks[0], ranks[-1], into, out))
            macs = float(factored_macs(layer, *widths))
        integer = not dropped and last_factor(layer.path, plan.ranks) in plan.weights
        reads = None
        if integer and choices.narrow:
            reads = plan.activations[resolve(layer.input)].bits
        rows.append(
            {
                "path": layer.path,
                "kind": layer.kind,
                "channels": layer.out_channels,
                "channels_kept": 0 if dropped else out,
                "bits": None
                if dropped
                else 32
                if not integer
                else 8
                if reads is None
                else min(reads, choices.weight_bits.get(layer.path, 8)),
                "dropped": dropped,
                "ranks": None if ranks is None else list(ranks),
                "weight_bits": choices.weight_bits.get(layer.path),
                "activation_bits": reads,
                "shared_values": choices.codebook.get(layer.path),
                "zeros": choices.sparsity.get(layer.path),
                "macs": layer.macs,
                "macs_kept": 0 if dropped else round(macs),
            }
        )
    space.check(policy)
    return rows


def target_json(target: Target, prices: Prices, compared: Comparison) -> dict[str, Any]:
    """A target, where its latencies come from, and how well they were foreseen."""
    return {
        "name": target.name,
        "measured": compared.measured,
        "provenance": latency_provenance(target, prices.table),
        "spec": target.spec,
        "device_class": target.device_class,
        "table_digest": prices.table.digest,
        "table_rows": len(prices.table),
        "machine": target.host().to_json(),
        "anchors": prices.anchors.to_json(),
        "modelled_share": prices.modelled_share,
        "heldout_error": {
            "mape": prices.fit.heldout_mape,
            "worst": prices.fit.heldout_worst,
            "policies": prices.fit.heldout,
        },
        "energy": None
        if prices.energy is None or prices.energy_fit is None
        else prices.energy.to_json()
        | {
            "heldout_mape": prices.energy_fit.heldout_mape,
            "heldout_worst": prices.energy_fit.heldout_worst,
        },
    }


def build_report(
    setup: JobSetup,
    prices: Prices,
    limits: dict[str, float],
    trials: list[Trial],
    policy: Policy,
    compressed: Compressed,
    measured: dict[str, Measured],
    compared: Comparison,
    extra: dict[str, Any],
) -> dict[str, Any]:
    """The contract's ``report.json``."""
    spec, target = setup.spec, setup.target
    baseline, chosen = measured["baseline"], measured["compressed"]
    misses = missed(limits, held(spec.budget, prices, chosen, compared))
    drop = drop_json(baseline, chosen)
    met = not misses and (spec.max_drop is None or drop["estimate"] <= spec.max_drop)
    return {
        "name": spec.name,
        "model": {"source": spec.model.source, "weights": spec.model.weights},
        "data": {
            "source": spec.data.source,
            "search_images": len(setup.search),
            "search_split": setup.splits.source,
            "calibration_images": len(setup.calibration),
        },
        "target": target_json(target, prices, compared),
        "budget": spec.budget,
        "budget_limits": limits,
        "objective": spec.objective,
        "max_drop": spec.max_drop,
        "scope": spec.space.scope,
        "agent": spec.agent.name,
        "seed": spec.agent.seed,
        "evaluations": len(trials),
        "space": setup.network.network_space.space.digest,
        "decisions": len(setup.network.network_space.space),
        "winner": policy.digest,
        "baseline": baseline.to_json(),
        "compressed": chosen.to_json(),
        "latency_ratio": compared.ratio_json("compressed"),
        "energy_ratio": compared.energy_ratios.get("compressed"),
        "weight_bytes": weight_bytes(setup.compressor),
        "accuracy_drop": drop,
        "references": {
            name: None
            if name not in measured
            else measured[name].to_json()
            | {
                "accuracy_drop": drop_json(baseline, measured[name]),
                "latency_ratio": compared.ratios[name],
                "energy_ratio": compared.energy_ratios.get(name),
            }
            for name in (*_REFERENCES, *({_FLOAT_REFERENCE} & measured.keys()))
        },
        "met_budget": met,
        "met_by": "measurement" if compared.measured else "prediction",
        "violations": misses,
        "not_faster": not compared.faster("compressed"),
        "left_out": [
            {"group": group, "reason": reason}
            for group, reason in sorted(setup.network.network_space.left_out.items())
        ],
        "layers": layers_json(setup, policy, compressed),
        "versions": _versions(),
    } | extra


def held(
    budget: dict[str, float],
    prices: Prices,
    chosen: Measured,
    compared: Comparison,
    name: str = "compressed",
) -> dict[str, float]:
    """What is held against the bounds, by quantity; ``name`` is the file's in the comparison.

    A fraction is held against the baseline of the same run, an absolute bound against the absolute value. What is
    predicted counts with the upper end of its 90 % interval.
    """
    have: dict[str, float] = {
        "size_bytes": chosen.size_bytes,
        "packed_bytes": chosen.packed_bytes,
        "macs": chosen.macs,
    }
    energy_error = 0.0 if prices.energy is None else prices.energy.error
    for quantity, fraction, own, ratio, margin in (
        (
            "latency_ms",
            "latency",
            chosen.latency["p50"] if compared.measured else chosen.latency["predicted_p50"],
            compared.ratios[name],
            1.0 if compared.measured else 1 + UPPER_90 * prices.anchors.error,
        ),
        (
            "energy_mj",
            "energy",
            chosen.energy["value"],
            compared.energy_ratios.get(name),
            1.0 if compared.measured_energy else 1 + UPPER_90 * energy_error,
        ),
    ):
        if own is None or ratio is None:
            continue
        exact = quantity in budget and own * margin > budget[quantity]
        share = prices.uncompressed.get(quantity, own / max(ratio, 1e-12)) * ratio
        have[quantity] = margin * (own if exact or fraction not in budget else share)
    return have


def missed(limits: Mapping[str, float], have: Mapping[str, float]) -> dict[str, float]:
    """By how much each bound is exceeded by what is held against it, as a fraction of the bound."""
    return {q: have[q] / v - 1 for q, v in limits.items() if have[q] > v * (1 + 1e-9)}


def costs_json(
    measured: Mapping[str, Measured],
    compared: Comparison,
    misses: Mapping[str, float],
    name: str,
) -> dict[str, Any]:
    """What one file takes and gives, beside the uncompressed network.

    Args:
        misses: bounds that it misses.
        name: of the file.
    """
    return {
        **measured[name].to_json(),
        "accuracy_drop": drop_json(measured["baseline"], measured[name]),
        "latency_ratio": compared.ratio_json(name),
        "energy_ratio": compared.energy_ratios.get(name),
        "met_budget": not misses,
        "violations": dict(misses),
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions
