"""The ACL file: its models, errors that name the line, and its compiled form.

``docs/security.md`` explains the file. ``AclTable.compile`` writes what ``mqttc/broker/acl.pyx`` reads: workers decide by that alone.
"""

from __future__ import annotations

import difflib
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from mqttc.auth.grant import ACTIONS, Action, Grant, Rule
from mqttc.config import Config, ConfigError, KeyPath, Problem, TopicFilter, read_toml

if TYPE_CHECKING:
    from mqttc.native import CompiledGrant

MAXIMUM_RULES: Final = 100_000
MAXIMUM_USERS: Final = 1_000_000
"""Of one group or list."""

_VERSION: Final = 2
_ACTION_BITS: Final[Mapping[Action, int]] = {"publish": 1, "subscribe": 2, "receive": 4, "retain": 8, "will": 16}
_OTHERWISE: Final = {"file": 0, "allow": 1, "deny": 2}
_USES_CLIENT_ID: Final = 1
_USES_USER: Final = 2


def _percent(allowed: str) -> Callable[[str], str]:
    """A check that every percent sign stands before one of these letters or another percent sign."""

    def check(text: str) -> str:
        rest = text.replace("%%", "")
        for letter in allowed:
            rest = rest.replace(f"%{letter}", "")
        if "%" in rest:
            raise ValueError(f"after % comes {', '.join(allowed)} or another %")
        return text

    return check


def _all_actions(value: object) -> object:
    return list(ACTIONS) if value == "all" else value


Actions = Annotated[list[Action], Field(min_length=1), BeforeValidator(_all_actions)]
Topic = Annotated[TopicFilter, AfterValidator(_percent("cu"))]
ClientPattern = Annotated[str, Field(min_length=1, max_length=65_535), AfterValidator(_percent("u"))]
Name = Annotated[str, Field(max_length=65_535)]
Users = Annotated[list[Name], Field(max_length=MAXIMUM_USERS)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Who(_Section):
    """Whom something is about: (``users`` or ``groups`` or ``anonymous``) and ``clients`` and ``listeners``.

    What is not given is no condition.
    """

    users: Users | None = None
    """User names; with ``*`` or ``?`` in it one is a pattern."""
    groups: list[Name] | None = None
    """Names of ``[groups]``."""
    anonymous: bool | None = None
    """true: clients without user name, or with one that nobody has checked."""
    clients: list[ClientPattern] | None = None
    """Client ids: ``*``, ``?``, and ``%u`` for the user name."""
    listeners: list[Name] | None = None
    """Names of listeners, or their URLs as configured."""


class AclRule(Who):
    """One ``[[rules]]`` table. Exactly one of ``allow`` and ``deny``."""

    allow: Actions | None = None
    """``"all"``, or any of ``publish``, ``subscribe``, ``receive``, ``retain``, ``will``."""
    deny: Actions | None = None
    topics: Annotated[list[Topic], Field(min_length=1)]
    """Topic filters; ``%c`` is the client id, ``%u`` the user name, ``%%`` a percent sign."""

    @model_validator(mode="after")
    def _check(self) -> AclRule:
        if (self.allow is None) == (self.deny is None):
            raise ValueError("a rule has either allow or deny")
        return self


class Owner(Who):
    """One ``[[owners]]`` table: the first one that is about a client says which client ids it may have."""

    client_ids: list[ClientPattern]
    """``*``, ``?``, and ``%u`` for the user name; none: no client id but one that the broker makes."""


class AclFile(_Section):
    """The whole file."""

    default: Literal["allow", "deny"] = "deny"
    """What holds where no rule matches."""
    denied_publish: Literal["acknowledge", "disconnect"] = "acknowledge"
    """What becomes of a 3.x client whose QoS 1 or 2 message is not allowed: 3.x cannot be told. [MQTT-3.3.5-2]"""
    superusers: Users = []
    """User names and patterns that may do everything."""
    superuser_groups: list[Name] = []
    client_ids: list[ClientPattern] | None = None
    """Client ids for everybody whom no ``[[owners]]`` table is about; not given: any."""
    groups: dict[str, Users] = {}
    """Group names with their users."""
    rules: Annotated[list[AclRule], Field(max_length=MAXIMUM_RULES)] = []
    owners: Annotated[list[Owner], Field(max_length=MAXIMUM_RULES)] = []


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is decided about one question, and why."""

    allowed: bool
    by: Literal["rule", "default", "superuser", "name", "nothing", "client id", "expiry", "memory", "unknown"]
    """``name``: the rule would have taken in a client id or user name that must not stand in a filter. ``client id``: this client
    id may not be used by this user, so the client is not even connected. Of a running broker's sessions alone: ``expiry``: the
    client's grant has ended. ``memory``: there was none for the rules. ``unknown``: the session came back from the store and its
    client has not; what is queued for it is looked at when it is sent."""
    rule: str = ""
    """Where the rule stands and what it says; empty where none decides."""
    granted: bool = False
    """The client's grant decides, and not the file."""

    def __str__(self) -> str:
        reasons = {
            "default": f"no rule {'of the grant ' if self.granted else ''}matches: by default",
            "superuser": "a superuser",
            "expiry": "the client's grant has ended",
            "memory": "there was no memory for its rules",
            "unknown": "its client was not here since the broker's start; it is looked at when it is sent",
            "name": f"the client id or user name must not stand in a filter; {self.rule}",
            "nothing": "there are no rules",
            "client id": f"this user may not use this client id; {self.rule}",
        }
        return f"{'allowed' if self.allowed else 'denied'}: {reasons.get(self.by, self.rule)}"


class AclTable:
    """An ACL file that has been read and checked."""

    def __init__(self, model: AclFile, file: str = "", lines: Mapping[KeyPath, str] | None = None) -> None:
        """``lines``: where keys stand. Raises ``ConfigError`` for groups that do not exist."""
        self.model = model
        self.file = file
        self._lines = lines or {}
        problems = [
            Problem(self.where(path), f"{'.'.join(map(str, path))}: there is no group {name!r}{_suggestion(name, model.groups)}")
            for path, name in self._group_names()
            if name not in model.groups
        ]
        if problems:
            raise ConfigError(problems)

    @classmethod
    def load(cls, file: str | Path) -> AclTable:
        """Read a file; raises ``ConfigError`` with every problem and its line."""
        data, lines = read_toml(Path(file))
        try:
            model = AclFile.model_validate(data)
        except ValidationError as error:
            raise ConfigError([_problem(detail, lines, str(file)) for detail in error.errors(include_url=False)]) from error
        return cls(model, str(file), lines)

    def where(self, path: KeyPath) -> str:
        """File and line of the key, or of the nearest thing around it."""
        return _where(path, self._lines, self.file)

    def _group_names(self) -> Iterable[tuple[KeyPath, str]]:
        for index, name in enumerate(self.model.superuser_groups):
            yield ("superuser_groups", index), name
        for section, items in (("rules", self.model.rules), ("owners", self.model.owners)):
            for number, item in enumerate(items):
                for index, name in enumerate(item.groups or ()):
                    yield (section, number, "groups", index), name

    def compile(self, listeners: Mapping[str, Sequence[int]]) -> bytes:
        """The table that workers decide by. ``listeners``: ids of each name and URL; raises ``ConfigError`` for others."""
        model = self.model
        writer = _Writer(model.groups)
        problems: list[Problem] = []

        def ids(path: KeyPath, who: Who) -> list[int] | None:
            for index, name in enumerate(who.listeners or ()):
                if name not in listeners:
                    where = self.where((*path, "listeners", index))
                    problems.append(Problem(where, f"there is no listener {name!r}{_suggestion(name, listeners)}"))
            return None if who.listeners is None else [one for name in who.listeners for one in listeners.get(name, ())]

        for number, rule in enumerate(model.rules):
            writer.rule(rule.allow is not None, rule.allow or rule.deny or (), rule.topics, number, rule, ids(("rules", number), rule))
        for number, owner in enumerate(model.owners):
            writer.owner(owner.client_ids, owner, ids(("owners", number), owner))
        if model.client_ids is not None:
            writer.owner(model.client_ids, Who(), None)
        superusers = Who(users=model.superusers, groups=model.superuser_groups) if model.superusers or model.superuser_groups else None
        if problems:
            raise ConfigError(problems)
        return writer.table(model.default, model.denied_publish == "disconnect", superusers)

    def rule_text(self, number: int) -> str:
        """Where a rule stands and what it says."""
        rule = self.model.rules[number]
        verb = f"allow {_enumerated(rule.allow)}" if rule.allow is not None else f"deny {_enumerated(rule.deny or ())}"
        return f"{self.where(('rules', number))}: rule {number + 1}: {verb} on {_enumerated(rule.topics)} for {_who_text(rule)}"

    def spelled(self, number: int) -> set[str]:
        """The topics of a rule as its compiled form has them."""
        return set(map(_spelled, self.model.rules[number].topics))

    def owner_text(self, number: int) -> str:
        """The same of who may use which client ids."""
        if number == len(self.model.owners):
            return f"{self.where(('client_ids',))}: client_ids = {list(self.model.client_ids or ())}"
        owner = self.model.owners[number]
        return f"{self.where(('owners', number))}: client_ids = {list(owner.client_ids)} for {_who_text(owner)}"

    def explain(
        self,
        action: Action,
        topic: str,
        *,
        client_id: str,
        username: str | None = None,
        listener: str | None = None,
        listeners: Mapping[str, Sequence[int]],
        groups: Sequence[str] = (),
        compiled: bytes | None = None,
    ) -> Explanation:
        """Who decides about this, as a worker would. ``topic`` is a filter if the action is ``subscribe``; ``$share`` may stand before it.

        ``listener`` None: one that no rule names. ``groups``: those that an authenticator has found the client to be in. ``compiled``: what
        ``compile(listeners)`` has made, if that is at hand. ``ValueError``: not a topic, or there is no such listener.
        """
        from mqttc.native import acl_decide  # late: reading a file needs no engine

        if listener is not None and not listeners.get(listener):
            raise ValueError(f"there is no listener {listener!r}{_suggestion(listener, listeners)}")
        table = self.compile(listeners) if compiled is None else compiled
        place = 65_535 if listener is None else listeners[listener][0]
        questions = questions_of(action, topic)
        given = compile_grant(Grant(groups=groups)) if groups else None
        allowed, _, _, number = acl_decide(table, "connect", "", client_id=client_id, username=username, listener=place, grant=given)
        if client_id and not allowed:
            return Explanation(False, "client id", self.owner_text(number))
        allowed, source, number = False, "", 0
        for name, text, whole in questions:
            allowed, source, _, number = acl_decide(
                table, name, text, client_id=client_id, username=username, listener=place, grant=given, whole=whole
            )
            if not allowed:
                break
        rule = self.rule_text(number) if source in ("rule", "name") else ""
        return Explanation(allowed, source, rule)  # type: ignore[arg-type]


def questions_of(action: Action, topic: str) -> list[tuple[Action, str, bool]]:
    """What the rules are asked, one after the other, all of which must be allowed: action, topic or filter, and whether nothing in
    the filter may be denied. ``ValueError``: not a topic."""
    shared, plain = _share_split(topic) if action == "subscribe" else (False, topic)
    _check_topic(plain, action)
    questions: list[tuple[Action, str, bool]] = [(action, plain, False)]
    if shared:
        questions.append(("receive", plain, True))
    if action == "retain":
        questions.insert(0, ("publish", plain, False))
    return questions


def action_bit(action: Action) -> int:
    """Its number in the compiled form."""
    return _ACTION_BITS[action]


def actions_of(bits: int) -> list[Action]:
    """The actions of a rule in the compiled form."""
    return [action for action, bit in _ACTION_BITS.items() if bits & bit]


def listener_ids(config: Config) -> dict[str, list[int]]:
    """Names and URLs of the configured listeners with their places: what ``compile`` takes where no broker runs."""
    ids: dict[str, list[int]] = {}
    for place, listener in enumerate(config.listeners):
        for name in {listener.name or listener.address.url(), listener.address.url()}:
            ids.setdefault(name, []).append(place)
    return ids


def compile_grant(grant: Grant, renew_before: float | None = None) -> CompiledGrant:
    """What ``Engine.answer`` takes. ``renew_before``: seconds before its end at which another is asked for, or half its time if that is
    less; None: never. ``ValueError``: a rule has an action or filter that is none."""
    writer = _Writer({})
    for number, rule in enumerate(grant.rules):
        check_rule(rule)
        writer.rule(rule.allow, rule.actions, rule.topics, number, Who(), None)
    table = writer.table(grant.otherwise, False, None) if grant.rules or grant.otherwise != "file" else None
    ttl_ms = -1 if grant.ttl is None else round(grant.ttl * 1000)
    if grant.username is not None and len(grant.username.encode()) > 65_535:
        raise ValueError("a user name has at most 65535 bytes")
    renew_ms = -1 if renew_before is None or ttl_ms < 0 else ttl_ms - min(round(renew_before * 1000), ttl_ms // 2)
    return table, ttl_ms, grant.superuser, grant.username, _group_list(grant.groups), renew_ms


def _group_list(groups: Sequence[str]) -> bytes:
    """As native code reads them: sorted by bytes."""
    if not groups:
        return b""
    return struct.pack("<I", len(groups)) + b"".join(map(_text, sorted(name.encode() for name in groups)))


def read_groups(data: bytes) -> list[str]:
    """What `compile_grant` has made of them."""
    names: list[str] = []
    at = 4
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        names.append(data[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return names


class _RuleModel(_Section):
    topics: Annotated[list[Topic], Field(min_length=1)]
    actions: Annotated[list[Action], Field(min_length=1)]


def check_rule(rule: Rule) -> None:
    """``ValueError``: it has an action or filter that is none."""
    _RuleModel(topics=list(rule.topics), actions=list(rule.actions))  # pydantic's ValidationError is a ValueError


def _check_topic(topic: str, action: Action) -> None:
    if action != "subscribe" and ("+" in topic or "#" in topic):
        raise ValueError(f"{topic!r} is a filter; {action} is asked of a topic")
    TypeAdapter(TopicFilter).validate_python(topic)


def _share_split(text: str) -> tuple[bool, str]:
    parts = text.split("/", 2)
    if parts[0] != "$share":
        return False, text
    if len(parts) < 3 or not parts[1]:
        raise ValueError(f"{text!r}: write $share/group/filter")
    return True, parts[2]


# ---------------------------------------------------------------------------------------- the compiled form


class _Writer:
    """Collects rules, and each combination of conditions once."""

    def __init__(self, groups: Mapping[str, Sequence[str]]) -> None:
        self._groups = groups
        self._whos: dict[bytes, int] = {}
        self._rules = bytearray()
        self._owners = bytearray()
        self._rule_count = self._owner_count = self._text_count = 0

    def rule(
        self, allow: bool, actions: Iterable[Action], topics: Iterable[str], number: int, who: Who, listeners: Sequence[int] | None
    ) -> None:
        """One for each topic."""
        bits = 0
        for action in actions:
            bits |= _ACTION_BITS[action]
        index = self.who(who, listeners)
        for topic in topics:
            bare = topic.replace("%%", "")
            uses = (_USES_CLIENT_ID if "%c" in bare else 0) | (_USES_USER if "%u" in bare else 0)
            self._rules += struct.pack("<BBBII", allow, bits, uses, number, index) + _text(_spelled(topic))
            self._rule_count += 1

    def owner(self, patterns: Sequence[str], who: Who, listeners: Sequence[int] | None) -> None:
        self._owners += struct.pack("<I", self.who(who, listeners)) + self._texts(patterns)
        self._owner_count += 1

    def who(self, who: Who, listeners: Sequence[int] | None) -> int:
        """1 + its place; 0: everybody."""
        subject = who.users is not None or who.groups is not None or who.anonymous is True
        if not subject and who.clients is None and listeners is None:
            return 0
        users = {*(who.users or ()), *(user for group in who.groups or () for user in self._groups[group])}
        exact = sorted(user.encode() for user in users if not _is_pattern(user))
        patterns = sorted(user.replace("%", "%%") for user in users if _is_pattern(user))
        # An empty list of clients is met by nobody, as an empty list of users is; without patterns it would be no condition.
        nobody = who.clients is not None and not who.clients
        flags = (subject or nobody) | (who.anonymous is True and not nobody) << 1 | (listeners is not None) << 2
        made = struct.pack("<B", flags)
        groups = list(who.groups or ())
        for texts in ([], [], [], []) if nobody else (exact, patterns, who.clients or [], groups):
            made += struct.pack("<I", len(texts)) + b"".join(map(_text, texts))
        made += struct.pack("<I", len(listeners or ())) + bytes(listeners or ())
        if made not in self._whos:
            self._text_count += 0 if nobody else len(exact) + len(patterns) + len(who.clients or ()) + len(groups)
            self._whos[made] = len(self._whos) + 1
        return self._whos[made]

    def _texts(self, texts: Sequence[str]) -> bytes:
        self._text_count += len(texts)
        return struct.pack("<I", len(texts)) + b"".join(map(_text, texts))

    def table(self, otherwise: str, disconnect: bool, superusers: Who | None) -> bytes:
        super_index = 0 if superusers is None else self.who(superusers, None)
        counts = (super_index, len(self._whos), self._rule_count, self._owner_count, self._text_count)
        head = struct.pack("<BBBIIIII", _VERSION, _OTHERWISE[otherwise], disconnect, *counts)
        return head + b"".join(self._whos) + self._rules + self._owners


def _text(text: str | bytes) -> bytes:
    encoded = text.encode() if isinstance(text, str) else text
    return struct.pack("<I", len(encoded)) + encoded


def _spelled(topic: str) -> str:
    """As it stands in the compiled form: what takes nothing in stands for itself."""
    bare = topic.replace("%%", "")
    return topic if "%c" in bare or "%u" in bare else topic.replace("%%", "%")


def _is_pattern(name: str) -> bool:
    return "*" in name or "?" in name


# ------------------------------------------------------------------------------------------------- texts


def _who_text(who: Who) -> str:
    subjects = [
        *(f"user {name}" for name in who.users or ()),
        *(f"group {name}" for name in who.groups or ()),
        *(["anonymous clients"] if who.anonymous else []),
    ]
    parts = [" or ".join(subjects)] if subjects else []
    if who.clients is not None:
        parts.append(f"clients {_enumerated(who.clients)}")
    if who.listeners is not None:
        parts.append(f"listeners {_enumerated(who.listeners)}")
    return ", ".join(parts) or ("nobody" if who.users is not None or who.groups is not None else "everybody")


def _enumerated(names: Sequence[str]) -> str:
    return ", ".join(names)


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _where(path: KeyPath, lines: Mapping[KeyPath, str], file: str) -> str:
    for end in range(len(path), 0, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return file


_MODELS: Final[Mapping[str | int, type[BaseModel]]] = {"rules": AclRule, "owners": Owner}


def _problem(detail: Any, lines: Mapping[KeyPath, str], file: str) -> Problem:
    path: KeyPath = tuple(detail["loc"])
    name = ".".join(map(str, path)) or "the file"
    where = _where(path, lines, file)
    if detail["type"] == "extra_forbidden":
        model: type[BaseModel] = _MODELS.get(path[0], AclFile) if len(path) > 1 else AclFile
        return Problem(where, f"unknown key {name}{_suggestion(str(path[-1]), model.model_fields)}")
    if detail["type"] == "missing":
        return Problem(where, f"{name} is missing")
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    value = detail["input"]
    got = "" if isinstance(value, Mapping) else f" (got {ascii(value)[:60]})"
    return Problem(where, f"{name}: {message}{got}")
