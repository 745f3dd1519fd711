"""`MQTTC_TEST_POLLER=kqueue` puts the kqueue poller (over its stand-in) in the place of this system's, for the whole process."""

from __future__ import annotations

import importlib
import os
import sys

if os.environ.get("MQTTC_TEST_POLLER") == "kqueue":
    assert "mqttc.net.reactor" not in sys.modules, "too late: the reactor has bound its poller already"
    importlib.import_module("mqttc.net.poller")
    sys.modules["mqttc.net.poller"] = importlib.import_module("tests.face.kqueue_poller")
