"""The rules of job states, over every state and every request."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.errors import ConflictError
from service.transitions import JobState, cancel, deletable, finish, start

S = JobState
ENDS = (S.SUCCEEDED, S.FAILED, S.CANCELLED)


def outcome(rule: Callable[[], JobState | None]) -> JobState | None:
    """The next state, or None for a conflict."""
    try:
        return rule()
    except ConflictError:
        return None


@pytest.mark.parametrize(
    ("state", "started", "cancelled"),
    [
        (S.QUEUED, S.RUNNING, S.CANCELLED),
        (S.RUNNING, S.RUNNING, S.CANCELLING),
        (S.CANCELLING, None, S.CANCELLING),
        (S.SUCCEEDED, None, None),
        (S.FAILED, None, None),
        (S.CANCELLED, None, S.CANCELLED),
    ],
)
def test_start_and_cancel(
    state: JobState, started: JobState | None, cancelled: JobState | None
) -> None:
    assert outcome(lambda: start(state)) == started
    assert outcome(lambda: cancel(state)) == cancelled


@pytest.mark.parametrize("state", list(S))
@pytest.mark.parametrize("end", list(S))
def test_finish(state: JobState, end: JobState) -> None:
    expected = None
    if end in ENDS and state == S.RUNNING:
        expected = end
    if end in ENDS and state == S.CANCELLING:
        expected = S.CANCELLED
    assert outcome(lambda: finish(state, end)) == expected


@pytest.mark.parametrize("state", list(S))
def test_what_has_ended_stays_as_it_is_and_can_be_deleted(state: JobState) -> None:
    assert state.ended == (state in ENDS)
    assert not (state.ended and state.active)
    if state.ended:
        deletable(state)
    else:
        with pytest.raises(ConflictError):
            deletable(state)
