"""How long the journal's thread rests before a batch: settles where it pays, and costs a client alone nothing. Times are nanoseconds."""

from __future__ import annotations

import pytest

from ..face.broker_pace import COMPANY_MOST, GATHER_MOST, MANY, company, gather

US = 1000
COMMIT = 200 * US


def settle(over_after: int, begun: int, batches: int = 400, commit: int = COMMIT) -> list[int]:
    """The rests of batches of `begun` deliveries, of which a part proportional to the rest is over: all from ``over_after`` on."""
    rests = [gather(0, commit, begun, 0)]
    for _ in range(batches):
        ns = rests[-1]
        rests.append(gather(ns, commit, begun, min(begun, begun * ns // over_after)))
    return rests


def test_a_rest_begins_with_as_much_as_a_commit_takes() -> None:
    assert gather(0, COMMIT, 10 * MANY, 0) == COMMIT
    assert gather(0, 10 * GATHER_MOST, 10 * MANY, 0) == GATHER_MOST


def test_a_large_batch_grows_until_most_of_it_is_over() -> None:
    rests = settle(over_after=1200 * US, begun=1000)
    settled = rests[200:]
    assert min(settled) > 1200 * US * 7 // 8 * 0.97 and max(settled) < 1200 * US * 9 // 8
    assert sum(ns >= 1200 * US * 7 // 8 for ns in settled) > len(settled) * 3 // 4


@pytest.mark.parametrize("commit", [COMMIT, 10 * GATHER_MOST])
def test_a_small_batch_waits_for_no_more_than_a_commit(commit: int) -> None:
    assert set(settle(over_after=1200 * US, begun=MANY - 1, commit=commit)) == {min(commit, GATHER_MOST)}


def test_a_shorter_rest_is_tried_where_nearly_all_were_over() -> None:
    rests = settle(over_after=10 * US, begun=1000)
    assert max(rests) == COMMIT
    assert max(rests[-50:]) < 20 * US


def test_receivers_far_away_are_not_waited_for() -> None:
    """The longest rest is in vain: it begins again, and never is longer than the most."""
    rests = settle(over_after=50_000 * US, begun=1000)
    assert max(rests) == GATHER_MOST
    assert rests.count(COMMIT) > len(rests) // 40
    assert sum(rests) < len(rests) * GATHER_MOST // 2


def test_who_spoke_during_a_commit_is_waited_for_next_time() -> None:
    ns = 0
    for _ in range(10):
        ns = company(ns, COMMIT, 1, True)
    assert ns == COMMIT // 2
    assert company(GATHER_MOST, 100 * COMPANY_MOST, 1, True) == COMPANY_MOST
    assert COMMIT // 2 * 0.9 < company(ns, COMMIT, 5, False) < ns


def test_a_publisher_alone_is_not_made_to_wait() -> None:
    ns, batches = COMMIT // 2, 0
    while ns:
        ns, batches = company(ns, COMMIT, 1, False), batches + 1
    assert batches <= 4
    assert company(0, COMMIT, 1, False) == 0
