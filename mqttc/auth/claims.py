"""Grants out of JSON: of a token's claim or of a web service's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from mqttc.auth.acl import check_rule
from mqttc.auth.grant import ACTIONS, MAXIMUM_GRANT_RULES, Action, Grant, Rule

_USUAL: Final[tuple[Action, ...]] = ("publish", "subscribe")


def grant_of(value: object) -> Grant:
    """Of a list of rules, ``{"topics": […], "actions": […], "allow": true}``, or of an object with lists of topics that may be
    used, ``{"publish": […], "subscribe": […]}``. What no rule matches is denied. ``ValueError`` says what is wrong.

    Without ``actions`` a rule is about publishing and subscribing, without ``allow`` it allows.
    """
    if isinstance(value, Mapping):
        unknown = value.keys() - set(ACTIONS)
        if unknown:
            raise ValueError(f"there is no action {sorted(map(str, unknown))[0]!r}")
        return _checked([Rule(True, (action,), _topics(value[action])) for action in ACTIONS if action in value])
    if not isinstance(value, list) or len(value) > MAXIMUM_GRANT_RULES:
        raise ValueError(f"rules are a list of at most {MAXIMUM_GRANT_RULES}, or an object")
    return _checked([_rule(rule) for rule in value])


def _checked(rules: list[Rule]) -> Grant:
    for rule in rules:
        check_rule(rule)
    return Grant(rules, "deny")


def _rule(value: object) -> Rule:
    if not isinstance(value, Mapping) or value.keys() - {"topics", "actions", "allow"}:
        raise ValueError("a rule is an object with topics, actions, allow")
    allow = value.get("allow", True)
    actions: Any = value.get("actions", list(_USUAL))
    if not isinstance(allow, bool):
        raise ValueError("allow is true or false")
    if not isinstance(actions, list) or not actions or any(action not in ACTIONS for action in actions):
        raise ValueError(f"actions are a list of {', '.join(ACTIONS)}")
    return Rule(allow, tuple(actions), _topics(value.get("topics")))


def _topics(value: object) -> Sequence[str]:
    if not isinstance(value, list) or not value or any(not isinstance(topic, str) or not topic for topic in value):
        raise ValueError("topics are a list of topic filters")
    return tuple(value)
