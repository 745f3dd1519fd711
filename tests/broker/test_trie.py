"""The subscription tree against a naive one."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.broker.reference import Tree, filters, matches, topics
from tests.face.broker_tree import STRIPES, TrieFace, handle, stripe

ST_OK, ST_LIMIT = 0, -4

sessions = st.integers(1, 4)
operation = st.one_of(
    st.tuples(st.just("subscribe"), filters, sessions, st.integers(0, 47), st.integers(0, 3)),
    st.tuples(st.just("unsubscribe"), filters, sessions),
    st.tuples(st.just("join"), filters, st.sampled_from([b"g", b"h", b"\xc3\xa9"]), st.integers(0, 3)),
    st.tuples(st.just("leave"), filters, st.sampled_from([b"g", b"h", b"\xc3\xa9"])),
)


def apply(tree: TrieFace, model: Tree, step: tuple) -> None:
    match step:
        case ("subscribe", filter, session, options, subscription_id):
            existed = (filter, session) in model.subscriptions
            assert tree.subscribe(filter, session, options, subscription_id) == (ST_OK, existed)
            model.subscriptions[filter, session] = (options, subscription_id)
        case ("unsubscribe", filter, session):
            assert tree.unsubscribe(filter, session) is (model.subscriptions.pop((filter, session), None) is not None)
        case ("join", filter, group, home):
            status, group_id = tree.group_join(group, filter, home)
            assert status == ST_OK
            if model.groups[group, filter]:
                assert group_id == model.ids[group, filter], "one id as long as the group has members"
            else:
                assert group_id >> 56 == home and group_id not in model.ids.values(), "ids are not used again"
            model.ids[group, filter] = group_id
            model.groups[group, filter] += 1
        case ("leave", filter, group):
            tree.group_leave(group, filter)
            if model.groups[group, filter]:
                model.groups[group, filter] -= 1


@settings(deadline=None)
@given(steps=st.lists(operation, max_size=60), asked=st.lists(topics, min_size=1, max_size=12))
def test_tree_is_what_a_naive_one_is(steps: list[tuple], asked: list[bytes]) -> None:
    tree, model = TrieFace(), Tree()
    for step in steps:
        apply(tree, model, step)
        assert tree.subscription_count == model.count
        assert tree.node_count == model.nodes
    for topic in asked:
        assert sorted(tree.match(topic)) == model.match(topic)
    for filter, session in list(model.subscriptions):
        apply(tree, model, ("unsubscribe", filter, session))
    for group, filter in list(model.groups):
        while model.groups[group, filter]:
            apply(tree, model, ("leave", filter, group))
    assert (tree.subscription_count, tree.node_count) == (0, 0), "nothing empty stays"
    assert all(tree.match(topic) == [] for topic in asked)


@settings(deadline=None)
@given(steps=st.lists(operation, min_size=1, max_size=40), asked=st.lists(topics, min_size=1, max_size=8, unique=True))
def test_whatever_changes_a_match_changes_a_generation(steps: list[tuple], asked: list[bytes]) -> None:
    tree, model = TrieFace(), Tree()
    before = {topic: (tree.match(topic), tree.generations(topic)) for topic in asked}
    for step in steps:
        apply(tree, model, step)
        for topic in asked:
            found, wild, generation = tree.match_with_generations(topic)
            assert (wild, generation) == tree.generations(topic)
            if sorted(found) != sorted(before[topic][0]):
                assert (wild, generation) != before[topic][1]
            before[topic] = (found, (wild, generation))


def test_only_the_stripe_of_the_filter_moves() -> None:
    tree = TrieFace()
    other = next(name for name in (b"t%d" % i for i in range(1000)) if stripe(name) != stripe(b"a"))
    assert 0 <= stripe(b"a/b/c") == stripe(b"a") < STRIPES
    tree.subscribe(b"a/b", 1)
    assert tree.generations(b"a/x") == (0, 1) and tree.generations(other) == (0, 0)
    tree.subscribe(b"a/b", 1)
    assert tree.generations(b"a/x") == (0, 1), "the same again changes nothing"
    tree.subscribe(b"a/b", 1, 1)
    assert tree.generations(b"a/x") == (0, 2)
    tree.subscribe(b"+/b", 1)
    tree.subscribe(b"#", 1)
    assert tree.generations(b"a") == (2, 2) and tree.generations(other) == (2, 0)
    tree.group_join(b"g", b"a/#")
    tree.group_join(b"g", b"a/#")
    assert tree.generations(b"a") == (2, 3), "a second member changes no route"
    tree.group_leave(b"g", b"a/#")
    assert tree.generations(b"a") == (2, 3)
    tree.group_leave(b"g", b"a/#")
    assert tree.generations(b"a") == (2, 4)
    assert not tree.unsubscribe(b"a", 1) and not tree.unsubscribe(b"a/b", 2)
    tree.group_leave(b"g", b"a/#")
    tree.group_leave(b"g", b"a/b")
    assert tree.generations(b"a") == (2, 4), "what was not there takes nothing away"
    assert tree.subscription_count == 3


@pytest.mark.parametrize(
    ("filter", "yes", "no"),
    [
        (b"sport/#", [b"sport", b"sport/", b"sport/a/b"], [b"sports", b"/sport", b"Sport"]),
        (b"#", [b"a", b"/", b"a/b"], [b"$SYS", b"$SYS/a"]),
        (b"+/monitor", [b"a/monitor", b"/monitor"], [b"$SYS/monitor", b"monitor"]),
        (b"$SYS/#", [b"$SYS", b"$SYS/a"], [b"a", b"$sys/a"]),
        (b"+", [b"a"], [b"/a", b"a/", b"$a"]),
        (b"/+", [b"/a", b"/", b"/$a"], [b"a", b"//"]),
        (b"+/+", [b"/a", b"a/"], [b"a", b"a/b/c"]),
        (b"a//b", [b"a//b"], [b"a/b", b"a///b"]),
        (b"a/+/#", [b"a/b", b"a/", b"a/b/c/d"], [b"a", b"b/b"]),
        (b"$share", [b"$share"], [b"share"]),
    ],
)
def test_examples_of_the_standard(filter: bytes, yes: list[bytes], no: list[bytes]) -> None:
    """[MQTT-4.7.1-1], [MQTT-4.7.1-2], [MQTT-4.7.2-1], [MQTT-4.7.3-4]"""
    tree = TrieFace()
    tree.subscribe(filter, 7, 2, 5)
    assert [topic for topic in yes if tree.match(topic) != [(7, 0, 5, 2)]] == []
    assert [topic for topic in no if tree.match(topic)] == []


def test_a_filter_with_too_many_levels_is_refused_and_a_topic_is_not() -> None:
    tree = TrieFace(4)
    for filter in (b"a/b/c/d", b"a/b/c/#", b"+/+/+/+", b"///"):
        assert tree.subscribe(filter, 1) == (ST_OK, False)
    for filter in (b"a/b/c/d/e", b"a/b/c/d/#", b"////"):
        assert tree.subscribe(filter, 1) == (ST_LIMIT, False)
        assert tree.group_join(b"g", filter)[0] == ST_LIMIT
        assert not tree.unsubscribe(filter, 1)
        tree.group_leave(b"g", filter)
    assert tree.subscription_count == 4
    assert len(tree.match(b"a/b/c/d")) == 3
    assert len(tree.match(b"a/b/c/d/e")) == 1, "of a longer topic no filter but those with # can match"
    assert len(tree.match(b"a/b/c" + b"/" * 60_000)) == 1


def test_deepest_filters() -> None:
    tree = TrieFace()
    deep = b"/".join([b"+"] * 512)
    assert tree.subscribe(deep, 1) == (ST_OK, False)
    assert tree.subscribe(deep + b"/+", 1) == (ST_LIMIT, False)
    assert tree.subscribe(b"/".join([b"a"] * 511) + b"/#", 2) == (ST_OK, False)
    assert sorted(match[0] for match in tree.match(b"/".join([b"a"] * 512))) == [1, 2]
    assert [match[0] for match in tree.match(b"/".join([b"a"] * 513))] == [2]
    assert tree.unsubscribe(deep, 1)
    assert tree.node_count == 511


def test_wildcards_explode_and_all_are_found() -> None:
    """Every mixture of a name and '+' over 14 levels: 16384 filters that one topic meets, more than one hold of the lock visits."""
    tree = TrieFace()
    depth = 14
    for number in range(1 << depth):
        filter = b"/".join(b"+" if number >> i & 1 else b"a" for i in range(depth))
        assert tree.subscribe(filter, number + 1) == (ST_OK, False)
    topic = b"/".join([b"a"] * depth)
    assert sorted(match[0] for match in tree.match(topic)) == list(range(1, (1 << depth) + 1))
    assert len(tree.match(topic[:-1] + b"b")) == 1 << (depth - 1)
    for number in range(1 << depth):
        filter = b"/".join(b"+" if number >> i & 1 else b"a" for i in range(depth))
        assert tree.unsubscribe(filter, number + 1)
    assert tree.node_count == 0


@pytest.mark.parametrize("filter", [b"a", b"a/#", b"+"])
def test_many_sessions_of_one_filter(filter: bytes) -> None:
    tree = TrieFace()
    model: dict[int, tuple[int, int]] = {}
    chance = random.Random(5)
    known = [handle(chance.randrange(4), slot, chance.randrange(1, 9)) for slot in range(3000)]
    for session in known:
        model[session] = (chance.randrange(3), chance.randrange(9))
        assert tree.subscribe(filter, session, *model[session]) == (ST_OK, False)
    assert sorted(tree.match(b"a")) == sorted((s, 0, i, o) for s, (o, i) in model.items())
    for _ in range(9000):
        session = chance.choice(known)
        if chance.random() < 0.6:
            assert tree.unsubscribe(filter, session) is (model.pop(session, None) is not None)
        else:
            options = (chance.randrange(3), chance.randrange(9))
            assert tree.subscribe(filter, session, *options) == (ST_OK, session in model)
            model[session] = options
    assert sorted(tree.match(b"a")) == sorted((s, 0, i, o) for s, (o, i) in model.items())
    while model:
        session = chance.choice(list(model))
        del model[session]
        assert tree.unsubscribe(filter, session)
        if len(model) % 97 == 0 or len(model) < 5:
            assert sorted(match[0] for match in tree.match(b"a")) == sorted(model)
    assert (tree.node_count, tree.subscription_count) == (0, 0)


def test_many_groups_of_one_filter() -> None:
    tree = TrieFace()
    ids = {b"g%d" % i: tree.group_join(b"g%d" % i, b"a/+", i % 3)[1] for i in range(2000)}
    assert len(set(ids.values())) == 2000
    tree.subscribe(b"a/+", 9)
    assert sorted(match[1] for match in tree.match(b"a/b")) == sorted([0, *ids.values()])
    chance = random.Random(1)
    for name in chance.sample(sorted(ids), 1999):
        tree.group_leave(name, b"a/+")
        del ids[name]
    assert sorted(match[1] for match in tree.match(b"a/b")) == [0, *ids.values()]
    name, last = ids.popitem()
    assert tree.group_join(name, b"a/#") != (ST_OK, last), "another filter, another group"
    tree.unsubscribe(b"a/+", 9)
    tree.group_leave(name, b"a/+")
    tree.group_leave(name, b"a/#")
    assert (tree.node_count, tree.subscription_count) == (0, 0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(filters, sessions), min_size=50, max_size=400), st.lists(topics, min_size=20, max_size=20))
def test_a_larger_tree(pairs: list[tuple[bytes, int]], asked: list[bytes]) -> None:
    tree = TrieFace()
    for filter, session in pairs:
        tree.subscribe(filter, session)
    for topic in asked:
        assert sorted(match[0] for match in tree.match(topic)) == sorted(s for f, s in set(pairs) if matches(f, topic))
