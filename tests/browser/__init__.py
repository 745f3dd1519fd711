"""MQTT.js in a real browser against a running broker."""
