"""A broker inside a program without asyncio: python examples/embed_script.py"""

import threading

from mqttc import BrokerThread
from mqttc.embed import Message

seen = threading.Event()


def alarm(message: Message) -> None:
    """Called in the broker's thread: it must not block."""
    print("alarm:", message.text)
    seen.set()


with (
    BrokerThread({"listeners": [{"url": "tcp://127.0.0.1:0"}]}) as broker,
    broker.subscribe("alarms/#", callback=alarm),
    broker.subscribe("numbers") as numbers,
):
    broker.publish("alarms/door", "open", qos=1)
    for number in range(3):
        broker.publish("numbers", str(number))
    for message in numbers:
        print("number:", message.text)
        if message.text == "2":
            break
    seen.wait(10)
