"""vec, ring and map against list, deque and dict."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.face.base_containers import MapFace, RingFace, VecFace

ST_OK, ST_NO_MEMORY, ST_ERROR = 0, -1, -3

ITEM_BYTES = st.sampled_from([4, 8, 12, 33])
VALUE = st.integers(0, 2**32 - 1)


@given(ITEM_BYTES, st.lists(st.tuples(st.sampled_from(["push", "push", "remove", "reserve"]), VALUE), max_size=200))
def test_vec_is_a_list(item_bytes: int, steps: list[tuple[str, int]]) -> None:
    vec, model = VecFace(item_bytes), []
    for verb, value in steps:
        if verb == "push":
            assert vec.push(value)
            model.append(value)
        elif verb == "reserve":
            assert vec.reserve(value % 300) == ST_OK
            assert vec.capacity >= value % 300
        elif model:
            index = value % len(model)
            vec.swap_remove(index)
            model[index] = model[-1]
            model.pop()
        assert vec.values() == model
        assert vec.capacity >= len(model)


def test_vec_refuses_what_no_memory_can_hold() -> None:
    vec = VecFace(2**32 - 1)
    assert vec.reserve(2**32 - 1) == ST_NO_MEMORY, "2^64 bytes: more than PTRDIFF_MAX"
    assert vec.capacity == 0 and vec.values() == []


def test_vec_without_an_item_size_is_an_error_not_a_crash() -> None:
    vec = VecFace(0)
    assert vec.reserve(1) == ST_ERROR
    assert not vec.push(1)


def test_vec_is_usable_after_free() -> None:
    vec = VecFace(8)
    assert vec.push(1)
    vec.free()
    assert vec.capacity == 0 and vec.values() == []
    assert vec.push(2)
    assert vec.values() == [2]


RING_VERBS = st.sampled_from(["push", "push", "push", "push_front", "pop", "remove", "trim"])


@given(ITEM_BYTES, st.lists(st.tuples(RING_VERBS, VALUE), max_size=200))
def test_ring_is_a_deque(item_bytes: int, steps: list[tuple[str, int]]) -> None:
    ring, model = RingFace(item_bytes), deque[int]()
    for verb, value in steps:
        if verb == "push":
            assert ring.push(value)
            model.append(value)
        elif verb == "push_front":
            assert ring.push_front(value)
            model.appendleft(value)
        elif verb == "pop":
            n = value % (len(model) + 1)
            ring.pop_front(n)
            for _ in range(n):
                model.popleft()
        elif verb == "remove" and model:
            index = value % len(model)
            ring.remove(index)
            del model[index]
        elif verb == "trim":
            before = ring.capacity
            ring.trim()
            if not model:
                assert ring.capacity == 0
            elif before > 4 and len(model) < before // 4:
                assert ring.capacity == before // 2
            else:
                assert ring.capacity == before
        assert ring.values() == list(model)


@pytest.mark.parametrize("start", range(16))
@pytest.mark.parametrize("count", [1, 2, 7, 15, 16])
def test_ring_remove_at_every_place_of_a_wrapped_ring(start: int, count: int) -> None:
    for index in range(count):
        ring = RingFace(12)
        for value in range(16):
            assert ring.push(value)
        ring.pop_front(16)
        for _ in range(start):
            assert ring.push(0)
            ring.pop_front(1)
        for value in range(count):
            assert ring.push(value)
        assert ring.capacity == 16
        ring.remove(index)
        assert ring.values() == [value for value in range(count) if value != index]


@pytest.mark.parametrize("head", range(8))
def test_ring_grows_in_order_wherever_its_head_is(head: int) -> None:
    ring = RingFace(8)
    for value in range(8):
        assert ring.push(value)
    for value in range(head):
        ring.pop_front(1)
        assert ring.push(8 + value)
    assert ring.capacity == 8
    assert ring.push(8 + head)
    assert ring.capacity == 16
    assert ring.values() == list(range(head, 9 + head))


KEY = st.integers(0, 60)
MAP_VERBS = st.sampled_from(["insert", "insert", "find", "remove", "replace"])


@given(st.sampled_from([1, 4, 2**31, 2**32]), st.lists(st.tuples(MAP_VERBS, KEY, VALUE), max_size=300))
def test_map_is_a_dict(spread: int, steps: list[tuple[str, int, int]]) -> None:
    """`spread` 1 and 4: nearly every key collides."""
    table, model = MapFace(), dict[int, int]()
    for verb, key, value in steps:
        hash = key * 0x9E3779B1 % 2**32 % spread
        if verb == "insert" and key not in model:
            assert table.insert(key, hash, value) == ST_OK
            model[key] = value
        elif verb == "remove":
            assert table.remove(key, hash) == model.pop(key, None)
        elif verb == "replace":
            assert table.replace(key, hash, value) == (key in model)
            if key in model:
                model[key] = value
        else:
            assert table.find(key, hash) == model.get(key)
        assert table.count == len(model)
        assert table.longest_way() >= 0
        assert sorted(table.items()) == sorted(model.items())
        assert table.capacity == 0 or table.count <= table.capacity - table.capacity // 8
    for key in range(61):
        assert table.find(key, key * 0x9E3779B1 % 2**32 % spread) == model.get(key)


def test_map_wraps_round_its_end() -> None:
    table = MapFace()
    for key in range(7):
        assert table.insert(key, 6, key) == ST_OK
    assert table.capacity == 8
    assert [table.remove(key, 6) for key in (0, 6, 3)] == [0, 6, 3]
    assert [table.find(key, 6) for key in range(7)] == [None, 1, 2, None, 4, 5, None]
    assert table.find(9, 5) is None


def test_map_gives_memory_back_and_keeps_what_it_holds() -> None:
    table = MapFace()
    hashes = [key * 0x9E3779B1 % 2**32 for key in range(20_000)]
    for key, hash in enumerate(hashes):
        assert table.insert(key, hash, key) == ST_OK
    assert table.capacity == 32_768
    for key in range(50, 20_000):
        assert table.remove(key, hashes[key]) == key
    assert table.capacity <= 1024
    assert sorted(table.items()) == [(key, key) for key in range(50)]


def test_map_probes_stay_short_at_the_highest_load() -> None:
    """Robin Hood: without it the longest of these ways is in the hundreds."""
    table = MapFace()
    state = 12345
    for key in range(28_672):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        assert table.insert(key, state >> 32, key) == ST_OK
    assert table.count == table.capacity * 7 // 8
    assert table.longest_way() < 60
