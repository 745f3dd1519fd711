"""Tests of the control plane: configuration, listeners, log lines, the Broker object, the command."""
