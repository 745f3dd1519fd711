"""mosquitto_pub and mosquitto_sub. One run of mosquitto_sub is the connection; each message is sent by a run of mosquitto_pub."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading

from tests.clients.listeners import folder, is_secure
from tests.clients.model import KEEP_ALIVE, TIMEOUT, ClientError, Message, Options, Properties, RealClient

_VERSIONS = {3: "mqttv31", 4: "mqttv311", 5: "mqttv5"}


def programs() -> tuple[str, str] | None:
    """Paths of mosquitto_pub and mosquitto_sub, if they are installed."""
    pub, sub = shutil.which("mosquitto_pub"), shutil.which("mosquitto_sub")
    return None if pub is None or sub is None else (pub, sub)


def _road(options: Options) -> list[str]:
    where = ["--unix", options.address] if isinstance(options.address, str) else ["-h", options.address[0], "-p", str(options.address[1])]
    trust = ["--cafile", str(folder() / "ca.pem")] if is_secure(options) else []
    return [*where, *trust, "-V", _VERSIONS[options.version]]


def _correlation_data(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


class MosquittoClient(RealClient):
    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.leaves_with_will = options.version == 5  # when a signal ends it
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._events: queue.Queue[str] = queue.Queue()
        self._log: list[str] = []

    def open(self) -> None:
        options = self.options
        self._events = queue.Queue()
        # It needs something to subscribe to; a client of the tests that only publishes gets a topic of its own.
        filters = [part for name, _ in options.subscriptions or [(f"unused/{options.client_id}", 0)] for part in ("-t", name)]
        qos = max((qos for _, qos in options.subscriptions), default=0)
        command = ["stdbuf", "-oL", "mosquitto_sub", *_road(options), "-i", options.client_id, "-k", str(KEEP_ALIVE)]
        command += ["-q", str(qos), *filters, "-d", "-F", "%j"]
        if options.session_expiry:
            command.append("-c")
        if options.version == 5:
            command += ["-x", str(options.session_expiry)]
        if options.will is not None:
            will = options.will
            command += ["--will-topic", will.topic, "--will-payload", will.payload.decode(), "--will-qos", str(will.qos)]
            command += ["--will-retain"] if will.retain else []
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._reader = threading.Thread(target=self._read, args=(self._process,))
        self._reader.start()
        try:
            event = self._events.get(timeout=TIMEOUT)
        except queue.Empty:
            event = "no SUBACK"
        if event != "subscribed":
            raise ClientError(f"{options.client_id}: {event}, {self._log}")

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                self.messages.put(self._message(json.loads(line)))
                continue
            self._log.append(line.strip())
            if line.startswith("Subscribed"):
                refused = any(int(code) >= 128 for code in line.rpartition(":")[2].split(","))
                self._events.put("refused" if refused else "subscribed")
        self._events.put("ended")

    def _message(self, fields: dict[str, object]) -> Message:
        found = fields.get("properties", {})
        assert isinstance(found, dict)
        properties = Properties(
            content_type=found.get("content-type"),
            response_topic=found.get("response-topic"),
            correlation_data=_correlation_data(found.get("correlation-data")),
            user=tuple(found.get("user-properties", {}).items()),
            message_expiry=found.get("message-expiry-interval"),
            payload_format=found.get("payload-format-indicator"),
        )
        topic, payload, qos = fields["topic"], fields.get("payload"), fields["qos"]
        assert isinstance(topic, str) and isinstance(payload, str | None) and isinstance(qos, int)
        return Message(topic, (payload or "").encode(), qos, bool(fields["retain"]), properties)

    def publish(self, message: Message) -> None:
        command = ["mosquitto_pub", *_road(self.options), "-q", str(message.qos), "-t", message.topic]
        command += ["-s"] if message.payload else ["-n"]
        if message.retain:
            command.append("-r")
        properties = message.properties
        for name, value in (
            ("content-type", properties.content_type),
            ("response-topic", properties.response_topic),
            ("correlation-data", None if properties.correlation_data is None else properties.correlation_data.decode()),
            ("message-expiry-interval", properties.message_expiry),
            ("payload-format-indicator", properties.payload_format),
        ):
            if value is not None:
                command += ["-D", "publish", name, str(value)]
        for name, value in properties.user:
            command += ["-D", "publish", "user-property", name, value]
        done = subprocess.run(command, input=message.payload.decode(), capture_output=True, text=True, timeout=TIMEOUT, check=False)
        if done.returncode or done.stderr:
            raise ClientError(f"mosquitto_pub: exit code {done.returncode}, {done.stderr}")

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()  # it disconnects in order
            self._join()

    def abort(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._join()

    def _join(self) -> None:
        assert self._process is not None and self._reader is not None and self._process.stdout is not None
        self._process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        self._process.stdout.close()
        self._process = None
