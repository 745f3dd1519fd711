"""Client CPU per message: mqttc next to paho-mqtt, aiomqtt and gmqtt, interleaved in one run.

    python -m bench.clients [--messages 100000] [--rounds 5] [--clients mqttc,paho,aiomqtt,gmqtt] [--rows qos0,qos1,receive]

Each figure is the CPU time of a process that does nothing else, user and system, all its threads, for one message: connecting and
importing are not in it. The broker, and for `receive` the publisher, are processes of their own. The clients of a row take turns,
each round in another order; the table shows the median of the rounds and the extremes.

`qos0`: publish and be sure that it is written. `qos1`: with 100 messages in flight, until the last is acknowledged; `qos1-awaited`:
the same by 100 callers each of which is told of its acknowledgement, which paho and gmqtt have no way to do. `receive`: read QoS 0
messages of one subscription. Version 5, 64 bytes, one topic.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

TOPIC = "bench/clients/1"
PAYLOAD = b"x" * 64
LAST = b"last"
IN_FLIGHT = 100
ROWS = ("qos0", "qos1", "qos1-awaited", "receive")
AWAITING = ("mqttc", "aiomqtt")
"""Who tells the caller of each acknowledgement."""
TIMEOUT_S = 300


class Watch:
    """CPU microseconds per message since it was made."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._start = time.process_time()

    def read(self) -> float:
        return (time.process_time() - self._start) / self._count * 1e6


async def in_flight(count: int, publish: Callable[[], Awaitable[Any]]) -> None:
    """As many callers as there may be messages in flight."""

    async def some(number: int) -> None:
        for _ in range(number):
            await publish()

    await asyncio.gather(*(some(count // IN_FLIGHT) for _ in range(IN_FLIGHT)))


# ---------------------------------------------------------------------------------------------------- the clients


async def mqttc_client(port: int, row: str, count: int) -> float:
    from mqttc import Client

    async with Client(f"mqtt://127.0.0.1:{port}", max_inflight=IN_FLIGHT, max_queued_messages=0) as client:
        if row == "receive":
            await client.subscribe(TOPIC)
            print("ready", flush=True)
            watch = Watch(count)
            async for message in client:
                if message.payload == LAST:
                    return watch.read()
        watch = Watch(count)
        if row == "qos0":
            for _ in range(count):
                await client.publish(TOPIC, PAYLOAD)
            await client.publish(TOPIC, LAST, 1)
        elif row == "qos1":
            for _ in range(count):
                await client.publish(TOPIC, PAYLOAD, 1, wait=False)
            while client.unfinished:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        else:
            await in_flight(count, lambda: client.publish(TOPIC, PAYLOAD, 1))
        return watch.read()


async def aiomqtt_client(port: int, row: str, count: int) -> float:
    import aiomqtt

    options: dict[str, Any] = {"max_queued_outgoing_messages": 0, "max_inflight_messages": IN_FLIGHT}
    async with aiomqtt.Client("127.0.0.1", port, protocol=aiomqtt.ProtocolVersion.V5, **options) as client:
        if row == "receive":
            await client.subscribe(TOPIC)
            print("ready", flush=True)
            watch = Watch(count)
            async for message in client.messages:
                if message.payload == LAST:
                    return watch.read()
        client.pending_calls_threshold = IN_FLIGHT * 2
        watch = Watch(count)
        if row == "qos0":
            for _ in range(count):
                await client.publish(TOPIC, PAYLOAD)
            await client.publish(TOPIC, LAST, 1)
        else:
            await in_flight(count, lambda: client.publish(TOPIC, PAYLOAD, 1))
        return watch.read()


def paho_client(port: int, row: str, count: int) -> float:
    import paho.mqtt.client as paho

    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.max_inflight_messages_set(IN_FLIGHT)
    ready, done = threading.Event(), threading.Event()
    room = threading.Semaphore(IN_FLIGHT)
    client.on_connect = lambda *_: ready.set()
    client.on_subscribe = lambda *_: ready.set()

    def on_message(_client: Any, _data: Any, message: Any) -> None:
        if message.payload == LAST:
            done.set()

    client.on_message = on_message
    client.connect("127.0.0.1", port)
    client.loop_start()
    ready.wait(TIMEOUT_S)
    if row == "receive":
        ready.clear()
        client.subscribe(TOPIC)
        ready.wait(TIMEOUT_S)
        print("ready", flush=True)
        watch = Watch(count)
        done.wait(TIMEOUT_S)
    else:
        client.on_publish = lambda *_: room.release()
        watch = Watch(count)
        for _ in range(count):
            room.acquire()
            client.publish(TOPIC, PAYLOAD, 0 if row == "qos0" else 1)
        for _ in range(IN_FLIGHT):
            room.acquire()
    result = watch.read()
    client.disconnect()
    client.loop_stop()
    return result


async def gmqtt_client(port: int, row: str, count: int) -> float:
    import gmqtt

    client = gmqtt.Client("bench-gmqtt", receive_maximum=65535)
    ready, done = asyncio.Event(), asyncio.Event()

    def on_message(_client: Any, _topic: str, payload: bytes, _qos: int, _properties: Any) -> int:
        if payload == LAST:
            done.set()
        return 0

    client.on_connect = lambda *_: ready.set()
    client.on_subscribe = lambda *_: ready.set()
    client.on_message = on_message
    await client.connect("127.0.0.1", port)
    await ready.wait()
    if row == "receive":
        ready.clear()
        client.subscribe(TOPIC)
        await ready.wait()
        print("ready", flush=True)
        watch = Watch(count)
        await done.wait()
    elif row == "qos0":
        watch = Watch(count)
        transport = client._connection._transport
        for number in range(count):
            client.publish(TOPIC, PAYLOAD)
            if number % 1000 == 999:
                while transport.get_write_buffer_size() > 65536:  # noqa: ASYNC110  # it has no back-pressure of its own
                    await asyncio.sleep(0)
        while transport.get_write_buffer_size():  # noqa: ASYNC110
            await asyncio.sleep(0)
    else:
        room = asyncio.Semaphore(IN_FLIGHT)
        handler = client._package_handler
        release = handler._remove_message_callback

        def acknowledged(mid: int) -> None:  # it tells nobody of acknowledgements
            room.release()
            release(mid)

        handler._remove_message_callback = acknowledged
        watch = Watch(count)
        for _ in range(count):
            await room.acquire()
            client.publish(TOPIC, PAYLOAD, qos=1)
        for _ in range(IN_FLIGHT):
            await room.acquire()
    result = watch.read()
    await client.disconnect()
    return result


CLIENTS: dict[str, Callable[[int, str, int], Any]] = {
    "mqttc": mqttc_client,
    "paho": paho_client,
    "aiomqtt": aiomqtt_client,
    "gmqtt": gmqtt_client,
}


# ---------------------------------------------------------------------------------------------------- the processes


def broker_process() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "bench.clients", "--broker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run_broker() -> None:
    from urllib.parse import urlsplit

    from mqttc import Broker

    limits = {"max_queued_messages": 10_000_000, "max_queued_bytes": 1 << 30}
    with Broker({"listeners": [{"url": "tcp://127.0.0.1:0"}], "workers": 1, "limits": limits}) as broker:
        print(urlsplit(broker.urls[0]).port, flush=True)
        sys.stdin.read()


async def feed(port: int, count: int) -> None:
    """The publisher of `receive`."""
    from mqttc import Client

    async with Client(f"mqtt://127.0.0.1:{port}") as client:
        for _ in range(count):
            await client.publish(TOPIC, PAYLOAD)
        await client.publish(TOPIC, LAST, 1)


def measure(name: str, row: str, port: int, count: int) -> float:
    """One process, one figure."""
    arguments = [sys.executable, "-m", "bench.clients", "--one", name, row, str(port), str(count)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        if row == "receive":
            assert process.stdout.readline() == "ready\n", f"{name} did not subscribe"
            asyncio.run(feed(port, count))
        text, _ = process.communicate(timeout=TIMEOUT_S)
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode:
        raise RuntimeError(f"{name} failed at {row}")
    return float(json.loads(text))


def run_one(name: str, row: str, port: int, count: int) -> None:
    found = CLIENTS[name](port, row, count)
    print(json.dumps(asyncio.run(found) if asyncio.iscoroutine(found) else found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", default=",".join(CLIENTS))
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--broker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.broker:
        return run_broker()
    if chosen.one:
        return run_one(chosen.one[0], chosen.one[1], int(chosen.one[2]), int(chosen.one[3]))
    names, count = chosen.clients.split(","), chosen.messages // IN_FLIGHT * IN_FLIGHT
    print(f"| µs of CPU per message | {' | '.join(names)} | mqttc against the best other |")
    print("|---" * (len(names) + 2) + "|")
    for row in chosen.rows.split(","):
        figures: dict[str, list[float]] = {name: [] for name in names}
        if row == "qos1-awaited":
            figures = {name: [] for name in names if name in AWAITING}
        for turn in range(chosen.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                if name not in figures:
                    continue
                with broker_process() as broker:
                    assert broker.stdin is not None and broker.stdout is not None
                    figures[name].append(measure(name, row, int(broker.stdout.readline()), count))
                    broker.stdin.close()
        medians = {name: statistics.median(found) for name, found in figures.items()}
        cells = [
            f"{medians[name]:.2f} ({min(figures[name]):.2f} to {max(figures[name]):.2f})" if name in figures else "" for name in names
        ]
        others = [median for name, median in medians.items() if name != "mqttc"]
        times = f"{min(others) / medians['mqttc']:.1f} x" if others and "mqttc" in medians else ""
        print(f"| {row} | {' | '.join(cells)} | {times} |", flush=True)
    return None


if __name__ == "__main__":
    main()
