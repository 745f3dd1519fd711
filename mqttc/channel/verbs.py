"""What the control socket can be asked: thin names for what `mqttc.embed` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mqttc.auth.grant import MAXIMUM_GROUPS, Action
from mqttc.auth.rules import RulesInForce
from mqttc.channel.protocol import ControlError
from mqttc.codec import ReasonCode, validate_topic
from mqttc.embed import admin, explain
from mqttc.embed.hub import Hub

Text = Annotated[str, Field(max_length=65_535)]
Cursor = Annotated[str, Field(max_length=64)]


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Page(_Arguments):
    limit: Annotated[int, Field(ge=1, le=admin.MAX_PAGE)] = 100
    after: Cursor | None = None


class _Client(_Arguments):
    client_id: Text


class _Disconnect(_Client):
    reason_code: int = int(ReasonCode.ADMINISTRATIVE_ACTION)


class _Retained(_Arguments):
    topic_filter: Text = "#"
    limit: Annotated[int, Field(ge=1, le=admin.MAX_PAGE)] = 100
    after: Text | None = None


class _Topic(_Arguments):
    topic: Text


class _Explain(_Page):
    action: Action
    topic: Text
    client_id: Text
    username: Text | None = None
    listener: Text | None = None
    groups: Annotated[list[Text], Field(max_length=MAXIMUM_GROUPS)] = []


class Verbs:
    """Of one running broker; on its control loop."""

    def __init__(self, hub: Hub, rules: RulesInForce | None) -> None:
        self._hub = hub
        self._rules = rules
        self._verbs: Final[dict[str, tuple[type[_Arguments], Callable[[Any], Awaitable[Any]]]]] = {
            "explain": (_Explain, self._explain),
            "clients": (_Page, self._clients),
            "client": (_Client, self._client),
            "sessions": (_Page, self._sessions),
            "session": (_Client, self._session),
            "disconnect": (_Disconnect, self._disconnect),
            "retained": (_Retained, self._retained),
            "clear_retained": (_Topic, self._clear_retained),
        }

    async def run(self, verb: str, arguments: dict[str, Any]) -> Any:
        """What JSON can say; raises ``ControlError`` and ``BrokerError``."""
        if verb not in self._verbs:
            raise ControlError("verb", f"there is no {verb[:60]!r}; there are {', '.join(self._verbs)}")
        model, call = self._verbs[verb]
        try:
            return await call(model.model_validate(arguments))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ControlError("arguments", f"{'.'.join(map(str, first['loc'])) or 'arguments'}: {first['msg']}") from None
        except ValueError as error:
            raise ControlError("arguments", str(error)) from None

    async def _explain(self, given: _Explain) -> Any:
        found = await explain.explain(self._hub, self._rules, **given.model_dump())
        made = dataclasses.asdict(found)
        made["text"] = str(found)
        if found.receivers is not None:
            for receiver, written in zip(found.receivers, made["receivers"]["items"], strict=True):
                written["groups"] = receiver.groups
                written["decision"]["text"] = str(receiver.decision)
        return made

    async def _clients(self, given: _Page) -> Any:
        return dataclasses.asdict(await admin.list_sessions(self._hub, True, given.limit, given.after))

    async def _sessions(self, given: _Page) -> Any:
        return dataclasses.asdict(await admin.list_sessions(self._hub, False, given.limit, given.after))

    async def _client(self, given: _Client) -> Any:
        found = await admin.look_up(self._hub, given.client_id)
        return dataclasses.asdict(found) if isinstance(found, admin.ClientInfo) else None

    async def _session(self, given: _Client) -> Any:
        found = await admin.look_up(self._hub, given.client_id)
        return None if found is None else dataclasses.asdict(found)

    async def _disconnect(self, given: _Disconnect) -> Any:
        return await admin.disconnect(self._hub, given.client_id, given.reason_code)

    async def _retained(self, given: _Retained) -> Any:
        return dataclasses.asdict(await admin.list_retained_info(self._hub, given.topic_filter, given.limit, given.after))

    async def _clear_retained(self, given: _Topic) -> Any:
        validate_topic(given.topic)  # a filter would clear more than was meant
        return await admin.delete_retained(self._hub, given.topic) != 0
