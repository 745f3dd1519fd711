"""The client on the command line: each command against our broker, and next to mosquitto's."""
