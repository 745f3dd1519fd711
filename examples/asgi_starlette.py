"""MQTT over WebSocket beside a web application: uvicorn --app-dir examples asgi_starlette:app --ws wsproto"""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute

from mqttc import Broker
from mqttc.asgi import MqttWebSocket, lifespan

broker = Broker({"listeners": [{"url": "asgi://"}], "auth": {"anonymous": "loopback"}})


async def greet(request: Request) -> PlainTextResponse:
    result = await broker.publish("greetings", f"hello {request.query_params['name']}")
    return PlainTextResponse(f"{result.receivers} told\n")


app = Starlette(routes=[Route("/greet", greet), WebSocketRoute("/mqtt", MqttWebSocket(broker))], lifespan=lifespan(broker))
