"""MQTT.js: all its clients live in one Node process, mqttjs.js, which takes commands and tells what arrives."""

from __future__ import annotations

import itertools
import json
import queue
import subprocess
import threading
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

from tests.clients.listeners import PATH, folder, is_secure, is_websocket
from tests.clients.model import KEEP_ALIVE, TIMEOUT, ClientError, Message, Options, Properties, RealClient

FOLDER = Path(__file__).parent
_NAMES = {
    "content_type": "contentType",
    "response_topic": "responseTopic",
    "message_expiry": "messageExpiryInterval",
}


class NodeBridge:
    """The Node process."""

    def __init__(self, node: str) -> None:
        self._process = subprocess.Popen([node, "mqttjs.js"], cwd=FOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._answers: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._clients: dict[int, MqttJsClient] = {}
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def add(self, client: MqttJsClient) -> int:
        with self._lock:
            number = next(self._numbers)
            self._clients[number] = client
        return number

    def call(self, verb: str, client: int, **arguments: Any) -> dict[str, Any]:
        answer: queue.Queue[dict[str, Any]] = queue.Queue()
        assert self._process.stdin is not None
        with self._lock:
            number = next(self._numbers)
            self._answers[number] = answer
            self._process.stdin.write(json.dumps({"number": number, "verb": verb, "client": client, **arguments}) + "\n")
            self._process.stdin.flush()
        try:
            result = answer.get(timeout=TIMEOUT)
        except queue.Empty:
            raise ClientError(f"MQTT.js: no answer to {verb}") from None
        if result["error"] is not None:
            raise ClientError(f"MQTT.js: {verb}: {result['error']}")
        return result

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            if "command" in said:
                self._answers.pop(said["command"]).put(said)
            else:
                self._clients[said["client"]].on_message(said)

    def stop(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        self._process.stdout.close()


class MqttJsClient(RealClient):
    def __init__(self, options: Options, bridge: NodeBridge) -> None:
        super().__init__(options)
        self._bridge = bridge
        self._number = bridge.add(self)
        self._open = False
        self.aliases: list[int] = []
        """Topic Alias of each message that had one."""

    def open(self) -> None:
        options = self.options
        is_5 = options.version == 5
        scheme = {"tcp": "mqtt", "unix": "mqtt+unix", "tls": "mqtts"}.get(options.transport, options.transport)
        where = options.address if isinstance(options.address, str) else "{}:{}".format(*options.address)
        url = f"{scheme}://{where}{PATH if is_websocket(options) else ''}"
        connect: dict[str, Any] = {
            "clientId": options.client_id,
            "protocolVersion": options.version,
            "protocolId": "MQIsdp" if options.version == 3 else "MQTT",
            "keepalive": KEEP_ALIVE,
            "clean": options.session_expiry == 0,
        }
        if is_secure(options):
            connect["ca"] = (folder() / "ca.pem").read_text()
        if is_5:
            connect["properties"] = {"sessionExpiryInterval": options.session_expiry}
            if options.topic_alias_maximum:
                connect["properties"]["topicAliasMaximum"] = options.topic_alias_maximum
                connect["autoAssignTopicAlias"] = True
        if options.will is not None:
            connect["will"] = self._written(options.will)
        subscriptions = {name: {"qos": qos} for name, qos in options.subscriptions}
        answer = self._bridge.call("open", self._number, url=url, options=connect, subscriptions=subscriptions)
        self._open = True
        self.session_present = answer["sessionPresent"] if options.version > 3 else None

    def publish(self, message: Message) -> None:
        self._bridge.call("publish", self._number, message=self._written(message))

    def close(self) -> None:
        if self._open:
            self._open = False
            self._bridge.call("close", self._number)

    def abort(self) -> None:
        self._open = False
        self._bridge.call("abort", self._number)

    def _written(self, message: Message) -> dict[str, Any]:
        written: dict[str, Any] = {
            "topic": message.topic,
            "payload": b64encode(message.payload).decode(),
            "qos": message.qos,
            "retain": message.retain,
        }
        if message.properties != Properties():
            source = message.properties
            properties = {theirs: getattr(source, ours) for ours, theirs in _NAMES.items() if getattr(source, ours) is not None}
            if source.correlation_data is not None:
                properties["correlationData"] = b64encode(source.correlation_data).decode()
            if source.payload_format is not None:
                properties["payloadFormatIndicator"] = bool(source.payload_format)
            if source.user:
                properties["userProperties"] = {name: [v for n, v in source.user if n == name] for name, _ in source.user}
            written["properties"] = properties
        return written

    def on_message(self, said: dict[str, Any]) -> None:
        found = said["properties"]
        if "topicAlias" in found:
            self.aliases.append(found["topicAlias"])
        correlation_data = found.get("correlationData")
        payload_format = found.get("payloadFormatIndicator")
        user: list[tuple[str, str]] = []
        for name, values in found.get("userProperties", {}).items():
            user += [(name, value) for value in ([values] if isinstance(values, str) else values)]
        properties = Properties(
            correlation_data=None if correlation_data is None else b64decode(correlation_data),
            user=tuple(user),
            payload_format=None if payload_format is None else int(payload_format),
            **{ours: found.get(theirs) for ours, theirs in _NAMES.items()},
        )
        self.messages.put(Message(said["topic"], b64decode(said["payload"]), said["qos"], said["retain"], properties))
