"""What the rules mean, in plain Python: the oracle of the native tables. No shortcut, no cache."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SPEAKS_FOR = {"receive": "subscribe", "retain": "publish", "will": "publish"}


@dataclass(frozen=True)
class Line:
    """One rule."""

    allow: bool
    actions: Sequence[str]
    topics: Sequence[str]
    users: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    anonymous: bool = False
    clients: Sequence[str] | None = None
    listeners: Sequence[str] | None = None


@dataclass(frozen=True)
class File:
    default: bool
    rules: Sequence[Line] = ()
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    superusers: Sequence[str] = ()
    owners: Sequence[tuple[Sequence[str], Line]] = ()
    """Patterns of client ids, and whom they are for."""


@dataclass(frozen=True)
class Client:
    client_id: str
    username: str | None = None
    listener: str = "main"
    groups: Sequence[str] = ()


def glob(pattern: str, text: str, username: str | None) -> bool:
    out = ""
    i = 0
    while i < len(pattern):
        two = pattern[i : i + 2]
        if two == "%u":
            if username is None:
                return False
            out += re.escape(username)
            i += 2
        elif two == "%%":
            out += "%"
            i += 2
        else:
            out += {"*": ".*", "?": "."}.get(pattern[i], re.escape(pattern[i]))
            i += 1
    return re.fullmatch(out, text, re.DOTALL) is not None


def user_is(patterns: Sequence[str], username: str) -> bool:
    return any(p == username or (("*" in p or "?" in p) and glob(p.replace("%", "%%"), username, None)) for p in patterns)


def concerns(line: Line, file: File, client: Client) -> bool:
    given = set(line.groups or ()) & set(client.groups)
    if not given and (line.users is not None or line.groups is not None or line.anonymous):
        if client.username is None:
            if not line.anonymous:
                return False
        else:
            named = [*(line.users or ()), *(user for group in line.groups or () for user in file.groups[group])]
            if not user_is(named, client.username):
                return False
    if line.clients is not None and not any(glob(p, client.client_id, client.username) for p in line.clients):
        return False
    return line.listeners is None or client.listener in line.listeners


def topics_of(topic_filter: list[str], text: list[str]) -> bool:
    """Whether the filter covers the topic or filter, level by level."""
    if topic_filter and text and topic_filter[0] in ("+", "#") and text[0].startswith("$"):
        return False
    while topic_filter:
        if topic_filter[0] == "#":
            return True
        if not text or text[0] == "#" or (text[0] == "+" and topic_filter[0] != "+"):
            return False
        if topic_filter[0] not in ("+", text[0]):
            return False
        topic_filter, text = topic_filter[1:], text[1:]
    return not text


def meets(topic_filter: list[str], text: list[str]) -> bool:
    """Whether some topic is one of both, by the only candidate of each length: what either says of a level, or a name that none has."""
    for n in range(1, max(len(topic_filter), len(text)) + 1):
        levels = [[part[i] for part in (topic_filter, text) if i < len(part) and part[i] not in ("+", "#")] for i in range(n)]
        topic = [level[0] if level else "\1" for level in levels]
        if topics_of(topic_filter, topic) and topics_of(text, topic):
            return True
    return False


def may_begin(text: list[str], beginning: str) -> bool:
    """Whether some topic of the filter begins like that."""
    *levels, last = beginning.split("/")
    for i, level in enumerate([*levels, last]):
        if i >= len(text):
            return False
        if text[i] in ("+", "#") and i == 0 and level.startswith("$"):
            return False
        if text[i] == "#":
            return True
        if text[i] != "+" and not (text[i] == level or (i == len(levels) and text[i].startswith(level))):
            return False
    return True


def unsafe(name: str) -> bool:
    return not name or name[0] == "$" or any(c in name for c in "/+#\0")


def decide_on(file: File, client: Client, action: str, text: str, whole: bool) -> bool | None:
    for line in file.rules:
        if action not in line.actions or not concerns(line, file, client):
            continue
        for topic in line.topics:
            bare = topic.replace("%%", "")
            if "%u" in bare and client.username is None:
                continue
            if ("%c" in bare and unsafe(client.client_id)) or ("%u" in bare and unsafe(client.username or "")):
                beginning = re.split(r"[%+#]", topic)[0]
                if topic[len(beginning) : len(beginning) + 1] == "#":
                    beginning = beginning[:-1]
                if text.startswith(beginning) or (whole and may_begin(text.split("/"), beginning)):
                    return False
                continue
            marked = topic.replace("%%", "\1").replace("%c", "\2").replace("%u", "\3")
            filled = marked.replace("\1", "%").replace("\2", client.client_id).replace("\3", client.username or "")
            if topics_of(filled.split("/"), text.split("/")):
                return line.allow
            if whole and not line.allow and meets(filled.split("/"), text.split("/")):
                return False
    return None


def decide(file: File, client: Client, action: str, text: str, whole: bool = False) -> bool:
    """`whole`: of a filter, nothing inside it may be denied."""
    if is_superuser(file, client):
        return True
    verdict = decide_on(file, client, action, text, whole)
    if verdict is None and action in SPEAKS_FOR:
        verdict = decide_on(file, client, SPEAKS_FOR[action], text, whole)
    return file.default if verdict is None else verdict


def is_superuser(file: File, client: Client) -> bool:
    return client.username is not None and user_is(file.superusers, client.username)


def may_use(file: File, client: Client) -> bool:
    """Whether this user may have this client id."""
    if is_superuser(file, client):
        return True
    for patterns, who in file.owners:
        if concerns(who, file, client):
            return any(glob(pattern, client.client_id, client.username) for pattern in patterns)
    return True
