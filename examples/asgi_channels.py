"""MQTT over WebSocket in a project of Django Channels: uvicorn --app-dir examples asgi_channels:app --ws wsproto"""

import django
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

from mqttc import Broker
from mqttc.asgi import MqttLifespan, MqttWebSocket

# A project of several files has this in its settings.
settings.configure(ALLOWED_HOSTS=["127.0.0.1", "localhost"], ROOT_URLCONF=__name__)
django.setup()

broker = Broker({"listeners": [{"url": "asgi://"}], "auth": {"anonymous": "loopback"}})


async def greet(request: HttpRequest) -> HttpResponse:
    result = await broker.publish("greetings", f"hello {request.GET['name']}")
    return HttpResponse(f"{result.receivers} told\n")


urlpatterns = [path("greet", greet)]
sockets = URLRouter([path("mqtt", MqttWebSocket(broker))])  # type: ignore  # Django's types know views alone, not ASGI applications

app = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": sockets, "lifespan": MqttLifespan(broker)})
