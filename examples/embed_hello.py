"""A broker inside an asyncio program, which publishes and subscribes without a socket: python examples/embed_hello.py"""

import asyncio

from mqttc import Broker, Client


async def main() -> None:
    async with (
        Broker({"listeners": [{"url": "tcp://127.0.0.1:0"}]}) as broker,
        broker.subscribe("rooms/+/temp", qos=1) as messages,
        Client(broker.urls[0]) as sensor,
    ):
        await sensor.subscribe("rooms/42/heating")
        await sensor.publish("rooms/42/temp", "21.5", qos=1)
        message = await messages.get()
        print(message.topic, message.text)
        result = await broker.publish("rooms/42/heating", "on", qos=1, retain=True)
        print("receivers:", result.receivers)


asyncio.run(main())
