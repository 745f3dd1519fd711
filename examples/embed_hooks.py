"""A broker whose program has a say about clients and messages: python examples/embed_hooks.py"""

import asyncio

from mqttc import Broker, Client, Hooks
from mqttc.auth import Request
from mqttc.embed import Disconnected
from mqttc.errors import MqttError
from mqttc.hooks import Accept, HookClient, Publication, Refuse, SubscriptionRequest

hooks = Hooks(deadline=1.0)
gone = asyncio.Event()
USERS = {"ann": b"secret", "bob": b"hidden"}


@hooks.authenticate
def who(request: Request) -> Accept | Refuse | None:
    """A plain function may block: it has a thread."""
    if request.username not in USERS:
        return None
    return Accept() if request.password == USERS[request.username] else Refuse(0x86)


@hooks.on_connect
async def welcome(client: HookClient) -> None:
    print("connected:", client.client_id)


@hooks.on_disconnect
async def farewell(event: Disconnected) -> None:
    print("disconnected:", event.client_id)
    gone.set()


@hooks.on_subscribe("inbox/#")
def own_inbox_only(request: SubscriptionRequest) -> bool:
    return request.topic_filter == f"inbox/{request.client.username}"


@hooks.on_publish("inbox/+")
async def signed(message: Publication) -> Publication | Refuse:
    """Nobody writes unsigned, or too much."""
    if len(message.payload) > 1000:
        return Refuse(0x97)
    return message.replace(payload=message.payload + b" -- " + (message.client.username or "?").encode())


async def main() -> None:
    async with Broker({"listeners": [{"url": "tcp://127.0.0.1:0"}], "auth": {"anonymous": False}}, hooks=hooks) as broker:
        url = broker.urls[0]
        async with (
            Client(url, client_id="ann", username="ann", password="secret") as ann,
            Client(url, client_id="bob", username="bob", password="hidden") as bob,
        ):
            inbox = await ann.subscribe("inbox/ann", qos=1)
            await bob.publish("inbox/ann", "hello", qos=1)
            print("ann reads:", (await anext(aiter(inbox))).text)
            for attempt in (bob.subscribe("inbox/ann"), bob.publish("inbox/ann", "x" * 2000, qos=1)):
                try:
                    await attempt
                except MqttError as error:
                    print("refused:", error)
        await gone.wait()
    for one in hooks.stats():
        print(f"{one.kind}: asked {one.asked}, refused {one.refused}, changed {one.changed}")


asyncio.run(main())
