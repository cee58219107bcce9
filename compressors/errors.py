"""Errors of compressing a network."""

from __future__ import annotations

from latency_tables.errors import TrimtabError


class TraceError(TrimtabError):
    """The network cannot be run or traced on its input."""

    slug = "trace"
    title = "Network cannot be traced"


class PruningError(TrimtabError):
    """A plan does not fit the network, or leaves an invalid one."""

    slug = "pruning"
    title = "Pruning failed"


class PlanError(TrimtabError):
    """A plan document is malformed or of another version."""

    slug = "plan"
    title = "Invalid plan"


class ExportError(TrimtabError):
    """The network cannot be exported, or the file disagrees with the network."""

    slug = "export"
    title = "Export failed"


class QuantizationError(TrimtabError):
    """A bit width or a calibration method that does not exist was asked for."""

    slug = "quantization"
    title = "Invalid quantization"


class TrainingError(TrimtabError):
    """A network cannot be trained as asked, or its training diverged."""

    slug = "training"
    title = "Training failed"


class PackError(TrimtabError):
    """A packed file is damaged or malformed, or a network cannot be packed."""

    slug = "pack"
    title = "Unusable packed file"
