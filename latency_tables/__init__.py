"""Devices, the kernels their runtimes execute, and tables of what those cost.

The room imports nothing of Trimtab's other rooms and no torch: it can be copied to a bare device
with numpy, onnx, filelock and one runtime. ``TargetContract`` for plug-ins lies in
``latency_tables.contract``; tables of others are read by ``latency_tables.importers``.
"""

from latency_tables.catalog import Catalog
from latency_tables.errors import (
    KernelError,
    MeasurementError,
    TableError,
    TargetError,
    TrimtabError,
)
from latency_tables.estimate import EstimateError, estimate_error
from latency_tables.exclusive import HostToken, timing_token
from latency_tables.host import HostFingerprint
from latency_tables.kernel import Kernel, KernelUse, TensorSpec, merge_uses
from latency_tables.latency import Latency, Measurements
from latency_tables.layer import Layer, LayerShape, Quantity
from latency_tables.layer_table import Flag, LayerTable, RowKey
from latency_tables.predict import Cost, network_cost
from latency_tables.row import Row
from latency_tables.scope import scope_of
from latency_tables.store import TableStore
from latency_tables.table import LatencyTable
from latency_tables.target import (
    KernelFailure,
    KernelMeasurements,
    Target,
    known_targets,
    parse_target,
)

__all__ = [
    "Catalog",
    "Cost",
    "EstimateError",
    "Flag",
    "HostFingerprint",
    "HostToken",
    "Kernel",
    "KernelError",
    "KernelFailure",
    "KernelMeasurements",
    "KernelUse",
    "Latency",
    "LatencyTable",
    "Layer",
    "LayerShape",
    "LayerTable",
    "MeasurementError",
    "Measurements",
    "Quantity",
    "Row",
    "RowKey",
    "TableError",
    "TableStore",
    "Target",
    "TargetError",
    "TensorSpec",
    "TrimtabError",
    "estimate_error",
    "known_targets",
    "merge_uses",
    "network_cost",
    "parse_target",
    "scope_of",
    "timing_token",
]
