"""What ``score_fidelity`` concludes: rank correlations of what is known before training with what training gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.fidelity_policies import Candidate
from evaluation.promise import MACS_WEIGHT

_RESAMPLES = 2000
Values = NDArray[np.float64]


def name_of(number: int, seed: int = 0, short: bool = False) -> str:
    """A training's name: one of several seeds, or the single epoch that serves as a score."""
    return f"policy-{number:03d}" + ("-short" if short else f"-seed{seed}")


def summary(
    candidates: Sequence[Candidate],
    scores: Mapping[str, Mapping[str, Mapping[str, float]]],
    trained: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Correlations with the final accuracy on images nobody trained on.

    Args:
        scores: by variant of the recipe and number of the policy.
        trained: by name of the training, as ``train_lot`` returns them.

    Returns:
        ``rows``: for each predictor Spearman's coefficient over all policies and over the better half by final
        accuracy, each with a 95 % percentile bootstrap interval over policies; and what was trained.
    """
    finals: dict[int, list[float]] = {}
    for number in range(len(candidates)):
        found = [state for name, state in sorted(trained.items())
                 if name.startswith(name_of(number).removesuffix("0")) and _finished(state)]  # fmt: skip
        if found:
            finals[number] = [float(state["held_out_accuracy"]) for state in found]
    numbers = sorted(finals)
    if len(numbers) < 3:
        raise SystemExit(f"{len(numbers)} policies are trained; at least 3 are needed")
    final = np.array([np.mean(finals[n]) for n in numbers])
    predictors = _predictors([candidates[n] for n in numbers], numbers, scores, trained)
    better = final >= np.median(final)
    macs = np.array([candidates[n].macs for n in numbers])
    for name in [n for n in predictors if n.endswith(", KL")]:
        fitted = _leave_one_out(predictors[name], macs, final)
        predictors[f"{name} with MACs, as jobs that fine-tune search"] = predictors[
            name
        ] + MACS_WEIGHT * np.log(macs)
        predictors[f"{name} with MACs, fitted to the other policies"] = fitted
    rows = {}
    for name, values in predictors.items():
        known = np.isfinite(values)
        # A half without differences has no order.
        if known[better].sum() >= 3 and np.ptp(values[known & better]) > 0:
            rows[name] = {
                "policies": int(known.sum()),
                "all": _correlation(values[known], final[known]),
                "better_half": _correlation(values[known & better], final[known & better]),
            }
    several = [f for f in finals.values() if len(f) > 1]
    first = finals[numbers[0]]
    return {
        "policies": len(numbers),
        "seeds": len(first),
        "final": {
            "least": float(final.min()),
            "largest": float(final.max()),
            "deviation": float(final.std(ddof=1)),
            # Of one training, from policies that were trained more than once.
            "between_seeds": float(np.sqrt(np.mean([np.var(f, ddof=1) for f in several])))
            if several
            else None,
            "original": float(trained[_any(trained)]["held_out_teacher_accuracy"]),
        },
        "rows": rows,
    }


def _finished(state: Mapping[str, Any]) -> bool:
    return state.get("state") == "finished"


def _any(trained: Mapping[str, Mapping[str, Any]]) -> str:
    return next(name for name, state in sorted(trained.items()) if _finished(state))


def _predictors(
    candidates: Sequence[Candidate],
    numbers: Sequence[int],
    scores: Mapping[str, Mapping[str, Mapping[str, float]]],
    trained: Mapping[str, Mapping[str, Any]],
) -> dict[str, Values]:
    """What each policy is ranked by, larger is better; NaN where it is not known."""
    found: dict[str, Values] = {}
    for variant, by_number in scores.items():
        for key, label in (("score", "KL"), ("accuracy", "accuracy")):
            found[f"{variant}, {label}"] = np.array(
                [by_number.get(str(n), {}).get(key, np.nan) for n in numbers], dtype=np.float64
            )
    short = [trained.get(name_of(n, short=True), {}) for n in numbers]
    for key, label, sign in (
        ("held_out_accuracy", "accuracy", 1.0),
        ("held_out_divergence", "KL", -1.0),
    ):
        found[f"after 1 epoch of training, {label}"] = np.array(
            [sign * s[key] if _finished(s) else np.nan for s in short], dtype=np.float64
        )
    found["control: MACs"] = np.array([c.macs for c in candidates])
    found["control: predicted latency"] = np.array([c.share for c in candidates])
    found["control: blocks kept"] = np.array([-float(len(c.choices.dropped)) for c in candidates])
    return found


def _leave_one_out(score: Values, macs: Values, final: Values) -> Values:
    """Final accuracy as a linear function of log divergence and log MACs, fitted without the policy itself."""
    known = np.isfinite(score) & (score < 0)
    if known.sum() < 8:
        return np.full(len(score), np.nan)
    logs = np.log(np.where(known, -score, 1.0))
    design = np.stack([np.ones(len(score)), logs, np.log(macs)], axis=1)
    found = np.full(len(score), np.nan)
    for k in np.flatnonzero(known):
        others = known.copy()
        others[k] = False
        found[k] = design[k] @ np.linalg.lstsq(design[others], final[others], rcond=None)[0]
    return found


def _correlation(predictor: Values, final: Values) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(final), size=len(final)) for _ in range(_RESAMPLES)]
    resampled = np.array([_spearman(predictor[d], final[d]) for d in drawn])
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return {"spearman": _spearman(predictor, final), "ci95": [float(low), float(high)]}


def _spearman(a: Values, b: Values) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b)[0])


def table(found: Mapping[str, Any]) -> str:
    final = found["final"]
    between = final["between_seeds"]
    lines = [
        f"{found['policies']} policies, {found['seeds']} trainings each; final accuracy {100 * final['least']:.2f} to "
        f"{100 * final['largest']:.2f} % (standard deviation {100 * final['deviation']:.2f} points"
        + (f", {100 * between:.2f} between seeds" if between is not None else "")
        + f"), the original {100 * final['original']:.2f} %",
        "",
        "| ranked by | policies | Spearman with final accuracy (95 %) | within the better half (95 %) |",
        "|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        cells = []
        for part in ("all", "better_half"):
            low, high = row[part]["ci95"]
            cells.append(f"{row[part]['spearman']:.2f} [{low:.2f}, {high:.2f}]")
        lines.append(f"| {name} | {row['policies']} | {' | '.join(cells)} |")
    return "\n".join(lines)
