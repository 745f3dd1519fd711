"""Black-box tests of a running broker, each naming the statements of the MQTT standards that it checks."""
