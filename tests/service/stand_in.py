"""A small pipeline in place of the real one: a search whose scores are known.

The job's name says what goes wrong: ``fail``, ``break``, ``break at N``, ``die at N`` (once, by kill -9), ``die
always``, ``slow``, ``deaf`` (does not notice that it is cancelled or was replaced). With ``local``
in front it scores in its own process instead of Ray's. ``whole`` is the real pipeline, its prices learned from few
policies.
"""

from __future__ import annotations

import os
import time
from typing import Any

from evaluation.errors import DataError
from evaluation.local_pool import LocalPool
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from service import pipeline, price_setup
from service.context import JobContext, TrialRecord
from service.job_spec import JobSpec


class Scorer:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def score(self, policy: Policy, score_to_beat: float | None = None) -> Evaluation:
        time.sleep(self.seconds)
        value = policy.values[0]
        return Evaluation(
            scores=(1 - 1 / (1 + value),),
            interval=(0.0, 1.0),
            costs={"latency_ms": 1.0 + value},
            violations={} if value < 6 else {"latency_ms": 0.1},
        )


def run_job(spec: JobSpec, context: JobContext) -> dict[str, Any]:
    if spec.name == "whole":
        price_setup.SAMPLES = 32
        return pipeline.run_job(spec, context)
    if spec.name == "fail":
        raise DataError("the data has no test split; give one")
    if spec.name == "break":
        raise KeyError("secret detail")
    if spec.name == "die always":
        os._exit(9)
    name = spec.name.removeprefix("local").strip()
    pinned = context.pin("table", {"pid": os.getpid()})
    context.pin("space", {"digest": "space"})
    worked = context.worked()
    context.stage("search", "scoring", 0, spec.agent.evaluations)
    seconds = 0.3 if name in ("slow", "deaf") else 0.01
    done = context.recorded()
    local = spec.name.startswith("local")
    pool = (LocalPool if local else context.pool)(lambda: Scorer(seconds))
    try:
        for number in range(len(done), spec.agent.evaluations):
            if name != "deaf":
                context.check()
            if name == f"die at {number}" and not (context.workdir / ".died").exists():
                (context.workdir / ".died").touch()
                os.kill(os.getpid(), 9)
            ticket = pool.submit(Policy("space", (number,)))
            (finished,) = pool.wait(60)
            assert finished.ticket == ticket
            outcome = finished.outcome
            failed = isinstance(outcome, Failure)
            trial = TrialRecord(
                number=number,
                told=number,
                asked_after=number,
                policy={"conv.keep": number},
                evaluation=None if failed else outcome.to_json(),
                failure=outcome.to_json() if failed else None,
            )
            context.record([trial])
            context.stage("search", "scoring", number + 1, spec.agent.evaluations)
            if name == f"break at {number}":
                raise DataError("an image is torn")
            while name == "deaf":
                time.sleep(1)
    finally:
        pool.close()
    (context.workdir / "sub").mkdir(exist_ok=True)
    (context.workdir / "sub" / "model.bin").write_bytes(bytes(range(256)))
    (context.workdir / "report.html").write_text("<p>done</p>")
    return {"pinned": pinned, "resumed": len(done), "pid": os.getpid(), "worked": worked}
