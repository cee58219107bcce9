"""Errors of data and scoring."""

from __future__ import annotations

from latency_tables.errors import TrimtabError


class DataError(TrimtabError):
    """The data lacks a split, is too small, or does not fit the network."""

    slug = "data"
    title = "Unusable data"


class ScoringError(TrimtabError):
    """A policy could not be scored."""

    slug = "scoring"
    title = "Scoring failed"


class TuningError(TrimtabError):
    """No finalist could be fine-tuned."""

    slug = "tuning"
    title = "Fine-tuning failed"


class RecordingError(TrimtabError):
    """A recording of evaluations is missing, damaged or of another version."""

    slug = "recording"
    title = "Unusable recording"
