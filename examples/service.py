"""A service of your own around the broker, for systemd or another supervisor: python examples/service.py rooms.toml

It tells which rooms are too hot. SIGHUP reads the file again, SIGTERM and SIGINT end it, a second one at once. Exit codes: 0 ended by a
signal, 1 it cannot run (an address in use, a store that is damaged, an error of this program), 2 wrong usage or configuration. The
unit for systemd is examples/systemd/rooms.service. The file:

    too_hot = 30.0
    [broker]                            # as docs/configuration.md has it
    listeners = [{ url = "tcp://0.0.0.0:1883" }]
    auth = { anonymous = true }
"""

import asyncio
import logging
import signal
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mqttc import Broker, ConfigError, MqttError, logs
from mqttc.embed import Subscription
from mqttc.systemd import Notifier, keep_watch

log = logging.getLogger("rooms")


class Settings(BaseModel, extra="forbid"):
    too_hot: float = 30.0
    broker: dict[str, Any] = {}


def read(file: Path) -> Settings:
    """Raises ``OSError`` or ``ValueError``."""
    return Settings.model_validate(tomllib.loads(file.read_text("utf-8")))


class Service:
    def __init__(self, file: Path) -> None:
        settings = read(file)
        self._file = file
        self._too_hot = settings.too_hot
        self._broker = Broker(settings.broker)
        self._notifier = Notifier(on_error=lambda error: log.warning("%s", error))
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        async with self._broker, self._broker.subscribe("rooms/+/temp", qos=1) as temperatures, asyncio.TaskGroup() as tasks:
            work = [tasks.create_task(self._tell(temperatures)), tasks.create_task(self._watch())]
            self._ready()
            while await self._signals.get() == signal.SIGHUP:
                await self._reload()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
            self._notifier.stopping()
            for task in work:
                task.cancel()
        log.info("ended")

    async def _tell(self, temperatures: Subscription) -> None:
        """What this service is for."""
        async for message in temperatures:
            try:
                hot = float(message.payload) > self._too_hot
                await self._broker.publish(message.topic.removesuffix("temp") + "hot", "yes" if hot else "no", qos=1, retain=True)
            except (ValueError, MqttError) as error:
                log.warning("%s: %s", message.topic, error)

    async def _watch(self) -> None:
        """The supervisor's watchdog hears from us only while this loop turns and all of the broker answers."""
        due = time.monotonic()
        while self._notifier.watchdog_s is not None:
            due = await asyncio.to_thread(keep_watch, self._notifier, self._broker.responsive, due, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    async def _reload(self) -> None:
        self._notifier.reloading()
        try:
            settings = read(self._file)
            result = await asyncio.to_thread(self._broker.reload, settings.broker)
        except (OSError, ValueError) as error:
            log.error("the old configuration stays in force: %s", error)
        else:
            self._too_hot = settings.too_hot
            log.info("reloaded; waiting for a restart: %s", ", ".join(result.needs_restart) or "nothing")
        self._ready()

    def _ready(self) -> None:
        log.info("listening on %s", " ".join(self._broker.urls))
        self._notifier.ready("listening on " + " ".join(self._broker.urls))


def main(arguments: list[str]) -> int:
    handler = logs.BackgroundHandler()  # a supervisor that does not read keeps nobody waiting
    handler.setFormatter(logs.formatter("text"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    logging.getLogger(logs.LOGGER_NAME).setLevel(logging.DEBUG)  # the broker heeds its own log.level
    if len(arguments) != 1:
        log.error("usage: service.py FILE")
        return 2
    try:
        service = Service(Path(arguments[0]))
    except (OSError, ValueError) as error:
        log.error("%s: %s", arguments[0], error)
        return 2
    try:
        asyncio.run(service.run())
    except ConfigError as error:  # of the files that the configuration names
        log.error("%s", error)
        return error.exit_code
    except OSError as error:
        log.error("cannot run: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
