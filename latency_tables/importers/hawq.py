"""HAWQ's tables: JSON with, per network, lists over its layers.

Yao et al. 2021, "HAWQ-V3: Dyadic Neural Network Quantization" (arXiv 2011.10680). A layer runs with
weights and activations of the same width. Its sensitivity at a width is the mean Hessian trace
(Hutchinson's estimate, divided by the number of weights) times the squared distance of the
quantized from the float weights; the integer program minimises the sum of these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from latency_tables.errors import TableError
from latency_tables.importers.content import Content, Format, number
from latency_tables.importers.published import Origin, origin_flags, origin_of, source_text
from latency_tables.layer import Layer, Quantity
from latency_tables.layer_table import LayerTable, RowKey
from latency_tables.table_file import AnyTable

_LATENCY = re.compile(r"latency_int(\d{1,2})", re.ASCII)
_TRACE = "Hutchinson_trace"
# "bops" are multiply-accumulates: HAWQ's notebook divides them by (32 / bits)^2 later.
_FACTS = {"parameters": "parameters", "bops": "macs"}
_MAX_LAYERS = 4096


def recognises(content: Content) -> bool:
    document = content.document
    return (
        isinstance(document, dict)
        and bool(document)
        and all(
            isinstance(entry, dict) and any(_LATENCY.fullmatch(key) for key in entry)
            for entry in document.values()
        )
    )


def read(content: Content) -> list[AnyTable]:
    """One table a network: latency in ms and, where the traces are given, sensitivity.

    Raises:
        TableError: lists of different lengths, or an entry that is negative, missing or no number;
            the message names network, list and layer.
    """
    origin = origin_of(content)
    return [_table(content, origin, network, entry) for network, entry in content.document.items()]


def _table(content: Content, origin: Origin, network: str, entry: Mapping[str, Any]) -> LayerTable:
    columns = _columns(network, entry)
    widths = sorted(int(match[1]) for key in columns if (match := _LATENCY.fullmatch(key)))
    latency = [columns[f"latency_int{bits}"] for bits in widths]
    quantities = [Quantity("latency", "ms", tuple(zip(*latency)))]
    perturbations = [f"delta_weights_{bits}bit_square" for bits in widths]
    if _TRACE in columns and columns.keys() >= set(perturbations):
        trace = columns[_TRACE]
        sensitivity = [[t * d for t, d in zip(trace, columns[key])] for key in perturbations]
        quantities.append(Quantity("sensitivity", "1", tuple(zip(*sensitivity))))
    layers = tuple(
        Layer(
            f"{network} layer {i}",
            facts=MappingProxyType(
                {fact: columns[key][i] for key, fact in _FACTS.items() if key in columns}
            ),
        )
        for i in range(len(latency[0]))
    )
    return LayerTable(
        name=network,
        key=RowKey.LAYER,
        layers=layers,
        precisions=tuple((bits, bits) for bits in widths),
        quantities=tuple(quantities),
        provenance=origin.provenance,
        source=source_text(FORMAT.name, content, origin),
        sha256=content.sha256,
        device=origin.device,
        network=network,
        batch=origin.batch,
        flags=origin_flags(origin, "latency in ms"),
    )


def _columns(network: str, entry: Mapping[str, Any]) -> dict[str, list[float]]:
    """The lists of numbers, all of one length."""
    for key, values in entry.items():
        if not isinstance(values, list):
            raise TableError(f"{network}: {key} is no list")
        if not 0 < len(values) <= _MAX_LAYERS:
            raise TableError(
                f"{network}: {key} has {len(values)} rows; 1 to {_MAX_LAYERS} are read"
            )
    longest = max(entry, key=lambda key: len(entry[key]))
    columns: dict[str, list[float]] = {}
    for key, values in entry.items():
        if len(values) < len(entry[longest]):
            raise TableError(
                f"{network}: {key} has {len(values)} rows and {longest} {len(entry[longest])}: "
                f"row {len(values)} of {key} is missing"
            )
        columns[key] = [
            _cell(value, f"{network}: {key}, row {i}") for i, value in enumerate(values)
        ]
    return columns


def _cell(value: Any, what: str) -> float:
    real = number(value, what)
    if real is None:
        raise TableError(f"{what} is missing")
    if real < 0:
        raise TableError(f"{what} is {real:g} (negative)")
    return real


FORMAT = Format(
    "hawq",
    "JSON {network: {'latency_int4': [ms...], 'latency_int8': [...], 'Hutchinson_trace': [...]...}}",
    recognises,
    read,
)
