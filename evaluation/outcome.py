"""One policy on one scorer: an evaluation, or a failure with its reason."""

from __future__ import annotations

import logging

from evaluation.pool import Scorer
from latency_tables.errors import TrimtabError
from latency_tables.exclusive import HostToken
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy

_log = logging.getLogger(__name__)


def outcome_of(
    scorer: Scorer, policy: Policy, score_to_beat: float | None = None
) -> Evaluation | Failure:
    """Scores while holding the host's token shared, so that nobody times meanwhile.

    A policy that breaks its network must not end the search: whatever scoring raises becomes a
    Failure.
    """
    with HostToken().computing():
        try:
            return scorer.score(policy, score_to_beat)
        except TrimtabError as error:
            return Failure(error.detail)
        except Exception as error:
            _log.exception("scoring policy %s", policy.digest)
            return Failure(f"{type(error).__name__}: {error}")
