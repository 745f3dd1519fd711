"""aiomqtt and gmqtt, on one asyncio loop in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import aiomqtt
import gmqtt
import paho.mqtt.client as paho

from tests.clients.listeners import PATH, context, is_secure, is_websocket
from tests.clients.model import KEEP_ALIVE, TIMEOUT, ClientError, Message, Options, Properties, RealClient
from tests.clients.paho_client import connect_properties, from_paho, hang_up, paho_transport, to_paho

T = TypeVar("T")


class LoopThread:
    """An event loop that other threads give work to."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="clients' loop")
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which has TIMEOUT seconds."""
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, TIMEOUT), self._loop).result()

    def stop(self) -> None:
        async def finish() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(finish(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class AiomqttClient(RealClient):
    def __init__(self, options: Options, loop: LoopThread) -> None:
        super().__init__(options)
        self._loop = loop
        self._client: aiomqtt.Client | None = None
        self._reader: asyncio.Task[None] | None = None

    def open(self) -> None:
        self._loop.run(self._open())

    def publish(self, message: Message) -> None:
        assert self._client is not None
        properties = to_paho(message.properties) if self.options.version == 5 else None
        self._loop.run(self._client.publish(message.topic, message.payload, message.qos, message.retain, properties))

    def close(self) -> None:
        self._loop.run(self._close())

    def abort(self) -> None:
        self._loop.run(self._abort())

    async def _open(self) -> None:
        options = self.options
        will = options.will
        is_5 = options.version == 5
        host, port = options.address if isinstance(options.address, tuple) else (options.address, 1)
        client = aiomqtt.Client(
            host,
            port,
            identifier=options.client_id,
            protocol=aiomqtt.ProtocolVersion(options.version),
            transport=paho_transport(options),
            tls_context=context() if is_secure(options) else None,
            websocket_path=PATH if is_websocket(options) else None,
            clean_session=None if is_5 else options.session_expiry == 0,
            clean_start=options.session_expiry == 0 if is_5 else paho.MQTT_CLEAN_START_FIRST_ONLY,
            properties=connect_properties(options) if is_5 else None,
            will=None if will is None else aiomqtt.Will(will.topic, will.payload, will.qos, will.retain),
            keepalive=KEEP_ALIVE,
            timeout=TIMEOUT,
        )
        await client.__aenter__()
        self._client = client
        self._reader = asyncio.create_task(self._read(client))
        if options.subscriptions:
            granted = await client.subscribe(list(options.subscriptions))
            if any((code if isinstance(code, int) else code.value) >= 0x80 for code in granted):
                raise ClientError(f"{options.client_id}: subscriptions refused, {granted}")

    async def _read(self, client: aiomqtt.Client) -> None:
        with contextlib.suppress(aiomqtt.MqttError):
            async for message in client.messages:
                payload = message.payload
                assert isinstance(payload, bytes)
                self.messages.put(Message(message.topic.value, payload, message.qos, message.retain, from_paho(message.properties)))

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        await client.__aexit__(None, None, None)
        assert self._reader is not None
        await self._reader

    async def _abort(self) -> None:
        client, self._client = self._client, None
        assert client is not None and self._reader is not None
        hang_up(client._client)
        await self._reader  # ends when the client has noticed
        with contextlib.suppress(aiomqtt.MqttError):
            await client.__aexit__(None, None, None)


class GmqttClient(RealClient):
    def __init__(self, options: Options, loop: LoopThread) -> None:
        super().__init__(options)
        self._loop = loop
        self._client: gmqtt.Client | None = None
        self._subscribed: asyncio.Event | None = None
        self._ended: asyncio.Event | None = None
        self.aliases: list[int] = []
        """Topic Alias of each message that had one."""
        self._quiet = logging.getLogger(f"{__name__}.gmqtt")
        self._quiet.setLevel(logging.CRITICAL)

    def open(self) -> None:
        self._loop.run(self._open())

    def publish(self, message: Message) -> None:
        self._loop.run(self._publish(message))

    def close(self) -> None:
        self._loop.run(self._close())

    def abort(self) -> None:
        self._loop.run(self._abort())

    async def _open(self) -> None:
        options = self.options
        assert isinstance(options.address, tuple), "gmqtt knows no Unix sockets"
        will = options.will
        properties: dict[str, int] = {}
        if options.version == 5:
            properties["session_expiry_interval"] = options.session_expiry
            if options.topic_alias_maximum:
                properties["topic_alias_maximum"] = options.topic_alias_maximum
        client = gmqtt.Client(
            options.client_id,
            clean_session=options.session_expiry == 0,
            will_message=None if will is None else gmqtt.Message(will.topic, will.payload, will.qos, will.retain),
            logger=self._quiet,
            **properties,
        )
        client.set_config({"reconnect_retries": 0, "reconnect_delay": 0})
        self._subscribed, self._ended = asyncio.Event(), asyncio.Event()
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect
        host, port = options.address
        tls = context() if is_secure(options) else False
        await client.connect(host, port, ssl=tls, keepalive=KEEP_ALIVE, version=options.version)
        self._client = client
        if options.subscriptions:
            client.subscribe([gmqtt.Subscription(topic, qos) for topic, qos in options.subscriptions])
            await self._subscribed.wait()
            if not all(subscription.acknowledged for subscription in client.subscriptions):
                raise ClientError(f"{options.client_id}: subscriptions refused")

    def _on_connect(self, _client: gmqtt.Client, session_present: int, _reason: int, _properties: dict[str, Any]) -> None:
        self.session_present = bool(session_present)

    def _on_subscribe(self, *_: Any) -> None:
        assert self._subscribed is not None
        self._subscribed.set()

    def _on_disconnect(self, *_: Any) -> None:
        assert self._ended is not None
        self._ended.set()

    def _on_message(self, _client: gmqtt.Client, topic: str, payload: bytes, qos: int, properties: dict[str, Any]) -> int:
        def first(name: str) -> Any:
            return properties[name][0] if name in properties else None

        if "topic_alias" in properties:
            self.aliases.append(properties["topic_alias"][0])
        correlation_data = first("correlation_data")
        received = Properties(
            content_type=first("content_type"),
            response_topic=first("response_topic"),
            correlation_data=None if correlation_data is None else bytes(correlation_data),
            user=tuple(map(tuple, properties.get("user_property", ()))),
            message_expiry=first("message_expiry_interval"),
            payload_format=first("payload_format_id"),
        )
        self.messages.put(Message(topic, bytes(payload), qos, bool(properties["retain"]), received))
        return 0

    async def _publish(self, message: Message) -> None:
        assert self._client is not None
        named = {
            "content_type": message.properties.content_type,
            "response_topic": message.properties.response_topic,
            "correlation_data": message.properties.correlation_data,
            "user_property": list(message.properties.user) or None,
            "message_expiry_interval": message.properties.message_expiry,
            "payload_format_id": message.properties.payload_format,
        }
        properties = {name: value for name, value in named.items() if value is not None}
        self._client.publish(message.topic, message.payload, message.qos, message.retain, **properties)
        await self._client._persistent_storage.wait_empty()

    async def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.disconnect()

    async def _abort(self) -> None:
        client, self._client = self._client, None
        assert client is not None and self._ended is not None
        client._is_active = False  # stop_reconnect() leaves it one attempt
        client._connection._transport.abort()
        await self._ended.wait()
