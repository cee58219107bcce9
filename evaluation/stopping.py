"""Which policies are worth a score on every search image: those that may be among the best so far.

A search asks for a hundred policies and keeps a few. A policy is scored on a share of the search images first, and on
more only while it may still be one of the best ``CONTENDERS`` and its score is not ``precise`` yet. What the best are
is told from the log of trials, never from what other workers happen to have finished: the same log gives the same
scores.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from evaluation.subsample import Estimate
from search_spaces.evaluation import Evaluation, Failure

# Best policies so far that a policy is held against. A job fine-tunes three finalists and may have to pass over as many
# whose files turn out too slow, so the order of more than the first must be right.
CONTENDERS = 6
# Images after which is looked whether to go on; multiples of the batch the exported file takes. A look costs as much as
# a few images. Policies that broke the network show on the first, good ones of a late search are told apart on many.
STAGES = (128, 256, 384, 512, 640, 768, 896, 1024, 1152, 1280, 1408, 1536, 1664, 1792)
# Standard errors below the last contender at which a policy is given up: one in 700 is so by bad luck at one look,
# about one in a hundred of those exactly at the bar over all of them.
SURE = 3.0
# Share of a score's variance over all search images that the images left out may add: its interval is then an eighth
# wider at most. On ResNet-56 it is reached at about two thirds of 2,000 images.
ADDED = 0.25


def bar(outcomes: Iterable[Evaluation | Failure], contenders: int = CONTENDERS) -> float | None:
    """The score to beat: of the last of the best so far that keep the budget; None while there are too few.

    Args:
        outcomes: of distinct policies told so far.
    """
    scores = [o.score for o in outcomes if isinstance(o, Evaluation) and o.feasible]
    return heapq.nlargest(contenders, scores)[-1] if len(scores) >= contenders else None


def hopeless(estimate: Estimate, score_to_beat: float | None) -> bool:
    """Whether a policy is surely below the bar on all search images; never without a bar."""
    return score_to_beat is not None and estimate.mean + SURE * estimate.error < score_to_beat


def precise(estimate: Estimate) -> bool:
    """Whether the images left out would hardly tell more: the search images are a sample themselves, and what all of
    them leave open outweighs what the rest of them could settle.
    """
    # Scores that are all alike so far tell nothing of their spread.
    return estimate.lasting > 0 and estimate.error**2 <= ADDED * estimate.lasting**2


def stages(images: int) -> tuple[int, ...]:
    """Numbers of images a score is looked at after, the last one all of them."""
    return (*(n for n in STAGES if n < images), images)
