"""The plugin's fixtures, also where the package is not installed and pytest has not found them by itself."""

from mqttc.pytest_plugin import (  # noqa: F401
    mqtt_async_client,
    mqtt_broker,
    mqtt_broker_config,
    mqtt_brokers,
    mqtt_client,
    mqtt_clock,
    mqtt_faults,
    mqtt_recorder,
    mqtt_session_broker,
    mqtt_session_broker_config,
    mqtt_url,
    pytest_configure,
)
