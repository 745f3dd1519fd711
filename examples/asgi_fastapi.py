"""MQTT over WebSocket around an application of FastAPI: uvicorn --app-dir examples asgi_fastapi:app --ws wsproto"""

from fastapi import FastAPI

from mqttc import Broker
from mqttc.asgi import MqttMiddleware

broker = Broker({"listeners": [{"url": "asgi://"}], "auth": {"anonymous": "loopback"}})
api = FastAPI()


@api.get("/greet")
async def greet(name: str) -> int | None:
    result = await broker.publish("greetings", f"hello {name}")
    return result.receivers


app = MqttMiddleware(api, broker)
