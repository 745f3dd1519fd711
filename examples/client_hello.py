"""Subscribe, publish, read one message: python examples/client_hello.py [url]"""

import asyncio
import sys

from mqttc import Client


async def main(url: str) -> None:
    async with Client(url) as client:
        await client.subscribe("hello/#", qos=1)
        await client.publish("hello/world", "hi", qos=1)
        async for message in client:
            print(message.topic, message.text)
            break


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "mqtt://localhost"))
