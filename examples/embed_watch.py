"""Who connects to the broker in this program, and what they have: python examples/embed_watch.py"""

import asyncio

from mqttc import Broker, Client
from mqttc.embed import Connected, Disconnected


async def main() -> None:
    async with Broker({"listeners": [{"url": "tcp://127.0.0.1:0"}]}) as broker:
        async with broker.events(Connected, Disconnected) as events:
            async with Client(broker.urls[0], client_id="sensor", clean_start=False, session_expiry=60) as sensor:
                await sensor.subscribe("settings/sensor", qos=1)
                event = await events.get()
                print("connected:", event.client_id)
                client = await broker.client("sensor")
                assert client is not None and client.subscriptions is not None
                print("protocol:", client.protocol, "filters:", [one.topic_filter for one in client.subscriptions])
            print("disconnected:", (await events.get()).client_id)
        await broker.publish("settings/sensor", "interval=5", qos=1)
        for session in await broker.sessions():
            print("session:", session.client_id, "queued:", session.queued)
        await broker.delete_session("sensor")


asyncio.run(main())
