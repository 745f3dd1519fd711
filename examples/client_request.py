"""A service and someone who asks it (MQTT 5.0): python examples/client_request.py [url]"""

import asyncio
import sys

from mqttc import Client
from mqttc.client import Message


async def main(url: str) -> None:
    async with Client(url) as service, Client(url) as client:

        async def shout(message: Message) -> None:
            await service.respond(message, message.text.upper())

        await service.subscribe("shout", qos=1, callback=shout)
        answer = await client.request("shout", "is anybody there?", timeout_s=5)
        print(answer.text)


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "mqtt://localhost"))
