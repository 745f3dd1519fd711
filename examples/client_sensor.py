"""A sensor that loses nothing: its messages wait in a file while the broker is away: python examples/client_sensor.py [url]"""

import asyncio
import sys
import tempfile
from pathlib import Path

from mqttc import Client
from mqttc.client import Reconnect, SqliteStore, State, Will


def tell(state: State, error: BaseException | None) -> None:
    print(state.value, "" if error is None else error)


async def main(url: str, folder: str) -> None:
    client = Client(
        url,
        client_id="sensor-7",
        session_expiry=86400,
        store=SqliteStore(Path(folder) / "sensor-7.db"),
        will=Will("sensors/7/state", b"lost", retain=True),
        reconnect=Reconnect(first_s=1, most_s=60),
        on_state=tell,
    )
    async with client:
        await client.publish("sensors/7/state", b"here", retain=True)
        for number in range(10):
            await client.publish("sensors/7/value", str(20 + number / 10), qos=1, wait=False)


with tempfile.TemporaryDirectory() as place:
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "mqtt://localhost", place))
