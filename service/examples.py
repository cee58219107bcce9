"""Bodies of ``POST /v1/jobs`` that OpenAPI shows."""

from __future__ import annotations

from fastapi.openapi.models import Example

JOB_EXAMPLES: dict[str, Example] = {
    "digits": {
        "summary": "A small network on scikit-learn's digits, half the time",
        "value": {
            "name": "digits, half the time",
            "model": {"source": "python:service.demo_networks:digits_cnn"},
            "data": {"source": "digits"},
            "target": "x86-ort",
            "budget": {"latency": 0.5},
            "agent": {"name": "auto", "evaluations": 60, "seed": 0},
        },
    },
    "pareto": {
        "summary": "Five networks of the front of accuracy, latency and size, none slower than 0.8",
        "value": {
            "name": "digits, the front",
            "model": {"source": "python:service.demo_networks:digits_cnn"},
            "data": {"source": "digits"},
            "budget": {"latency": 0.8},
            "objective": "pareto",
            "costs": ["latency", "size"],
            "agent": {"name": "auto", "evaluations": 100},
            "finetune": {"finalists": 5},
        },
    },
    "targets": {
        "summary": "One network for this machine and for a simulated accelerator",
        "value": {
            "name": "digits, on two targets",
            "model": {"source": "python:service.demo_networks:digits_cnn"},
            "data": {"source": "digits"},
            "targets": [
                {"name": "x86-ort", "budget": {"latency": 0.6}},
                {"name": "sim-bitfusion", "budget": {"latency": 0.5, "size": 0.4}},
            ],
            "agent": {"name": "auto", "evaluations": 60},
        },
    },
    "latency": {
        "summary": "The fastest network within half a point of accuracy",
        "value": {
            "name": "resnet20, half a point",
            "model": {
                "source": "python:cifar_zoo:resnet20",
                "weights": "<id from POST /v1/weights>",
            },
            "data": {"source": "python:cifar_zoo:cifar10"},
            "target": "x86-ort?threads=2",
            "budget": {},
            "objective": "latency",
            "max_drop": 0.005,
            "space": {"scope": "joint", "exclude": ["fc"], "criterion": "l1"},
            "finetune": {"epochs": 2, "finalists": 3, "augment": "crop_flip"},
        },
    },
}
