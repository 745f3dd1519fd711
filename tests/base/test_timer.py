"""The timer wheel against a dict of deadlines: never early, at most a tick late, in order, whatever the clock does."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.face.base_timer import WheelFace

TICK_MS = 64
INT64_MAX = 2**63 - 1
NODES = 24

DELAY = st.one_of(st.integers(-100, 300), st.integers(0, 10**5), st.integers(0, 10**12), st.sampled_from([2**n * 64 for n in range(40)]))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, NODES - 1), DELAY),
        st.tuples(st.just("cancel"), st.integers(0, NODES - 1), st.just(0)),
        st.tuples(st.just("pass"), st.just(0), st.one_of(st.integers(0, 200), st.integers(0, 10**6), st.integers(0, 10**12))),
        st.tuples(st.just("sleep"), st.just(0), st.just(0)),
    ),
    max_size=120,
)


def tick_of(deadline_ms: int, origin_ms: int) -> int:
    return max(0, -((origin_ms - deadline_ms) // TICK_MS))


@settings(max_examples=300)
@given(st.sampled_from([0, 1, 63, 10**6 + 7, -(10**6)]), STEPS)
def test_wheel_against_deadlines(origin_ms: int, steps: list[tuple[str, int, int]]) -> None:
    wheel, model, now = WheelFace(origin_ms, NODES), dict[int, int](), origin_ms
    for verb, node, ms in steps:
        if verb == "add":
            wheel.add(node, now + ms)
            model[node] = now + ms
        elif verb == "cancel":
            wheel.cancel(node)
            model.pop(node, None)
        elif verb == "pass" or not model:
            now += ms
        else:
            woken = 0
            while not any(deadline <= now for deadline in model.values()):
                following = wheel.next_ms(now)
                assert now < following <= min(model.values()) + TICK_MS
                now = following
                if not any(deadline <= now for deadline in model.values()):
                    assert wheel.expire(now) == []
                woken += 1
                assert woken <= 11, "one wake-up a level at most"
        if verb in ("pass", "sleep"):
            fired = wheel.expire(now)
            assert len(set(fired)) == len(fired)
            deadlines = [model.pop(node) for node in fired]
            assert all(deadline <= now for deadline in deadlines), "never early"
            assert all(deadline > now - TICK_MS for deadline in model.values()), "at most a tick late"
            assert not fired or not any(wheel.armed(node) for node in fired)
        for each in range(NODES):
            assert wheel.armed(each) == (each in model)
        assert (wheel.next_ms(now) == -1) == (not model)
        if model:
            assert wheel.next_ms(now) <= max(now, min(model.values()) + TICK_MS)


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=NODES), st.integers(0, 10**9))
def test_a_jump_fires_everything_in_the_order_of_ticks(delays: list[int], origin_ms: int) -> None:
    wheel = WheelFace(origin_ms, NODES)
    for node, delay in enumerate(delays):
        wheel.add(node, origin_ms + delay)
    fired = wheel.expire(origin_ms + 10**7 + TICK_MS)
    assert sorted(fired) == list(range(len(delays)))
    ticks = [tick_of(origin_ms + delays[node], origin_ms) for node in fired]
    assert ticks == sorted(ticks)


def test_adding_an_armed_node_moves_it() -> None:
    wheel = WheelFace(0, 1)
    wheel.add(0, 1000)
    wheel.add(0, 5000)
    assert wheel.expire(4999) == []
    assert wheel.expire(5000 + TICK_MS) == [0]
    wheel.add(0, 9000)
    wheel.cancel(0)
    wheel.cancel(0)
    assert wheel.next_ms(6000) == -1
    assert wheel.expire(10**9) == []


def test_a_node_can_be_cancelled_while_others_fire() -> None:
    wheel = WheelFace(0, 3)
    for node in range(3):
        wheel.add(node, 10)
    assert wheel.expire_one(1000) == 0
    wheel.cancel(1)
    wheel.add(0, 1200)
    assert wheel.expire(1000) == [2]
    assert wheel.expire(1300) == [0]


def test_a_node_added_already_due_fires_at_once() -> None:
    wheel = WheelFace(500, 3)
    assert wheel.expire(5000) == []
    for node, deadline in enumerate((-(10**9), 400, 5000)):
        wheel.add(node, deadline)
    assert wheel.next_ms(5000) == 5000
    fired = wheel.expire(5000)
    assert {0, 1} <= set(fired)
    assert set(fired) | set(wheel.expire(5000 + TICK_MS)) == {0, 1, 2}


@pytest.mark.parametrize("origin_ms", [0, 10**12, -(2**63)])
def test_the_end_of_time(origin_ms: int) -> None:
    wheel = WheelFace(origin_ms, 2)
    wheel.add(0, INT64_MAX)
    wheel.add(1, INT64_MAX - 1000)
    assert wheel.expire(origin_ms + 10**12) == []
    assert origin_ms + 10**12 < wheel.next_ms(origin_ms + 10**12) <= INT64_MAX
    assert wheel.expire(INT64_MAX - 900) == [1]
    assert wheel.expire(INT64_MAX) == [0]


def test_a_jump_of_a_century_costs_what_is_armed_not_what_passed() -> None:
    century_ms = 100 * 366 * 86_400_000
    wheel = WheelFace(0, 1000)
    source = random.Random(1)
    for node in range(1000):
        wheel.add(node, source.randrange(century_ms))
    start = time.perf_counter()
    assert len(wheel.expire(century_ms + TICK_MS)) == 1000
    wheel.add(0, 2 * century_ms)
    assert wheel.expire(2 * century_ms + TICK_MS) == [0]
    assert time.perf_counter() - start < 1, "49 billion ticks one by one would take minutes"


@settings(max_examples=300)
@given(st.sampled_from([0, 1, 63, 10**6 + 7, -(10**6)]), STEPS)
def test_a_wheel_of_a_clock_that_stands_still_is_exact(origin_ms: int, steps: list[tuple[str, int, int]]) -> None:
    wheel, model, now = WheelFace(origin_ms, NODES), dict[int, int](), origin_ms
    for verb, node, ms in steps:
        if verb == "add":
            wheel.add(node, now + ms)
            model[node] = now + ms
        elif verb == "cancel":
            wheel.cancel(node)
            model.pop(node, None)
        else:
            now += ms
            fired = wheel.expire_exact(now)
            assert {node: model[node] for node in fired} == {node: due for node, due in model.items() if due <= now}
            assert [model[node] for node in fired] == sorted(model[node] for node in fired)
            for node in fired:
                del model[node]
            assert all(wheel.armed(node) for node in model)
    # A tick later the wheel is good for time that runs: what is left is never early.
    now += TICK_MS
    fired = wheel.expire(now)
    assert all(model[node] <= now for node in fired)
    assert {node for node, due in model.items() if due + TICK_MS <= now} <= set(fired)
