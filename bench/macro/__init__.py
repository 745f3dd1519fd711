"""The speed comparison: mqttc, other brokers and a bare relay, each on one core, the load on another."""
