"""Without asyncio: python examples/client_script.py [url]"""

import sys

from mqttc import SyncClient

with SyncClient(sys.argv[1] if len(sys.argv) > 1 else "mqtt://localhost") as client:
    client.subscribe("script/#", qos=2)
    for number in range(3):
        client.publish(f"script/{number}", f"message {number}", qos=number)
    for _ in range(3):
        message = client.get(timeout_s=5)
        print(message.topic, message.text, int(message.qos))
