"""pytest plugin of `dev.py asan` and `dev.py tsan`: Python programs that tests start run under the sanitizer, other programs do not.

pytest itself is already preloaded. A client in C or Node that inherited LD_PRELOAD would crash or report what is not ours, so it is taken
out of the environment, and `sys.executable` becomes a wrapper that sets it again.
"""

from __future__ import annotations

import os
import sys

os.environ.pop("LD_PRELOAD", None)
sys.executable = os.environ["MQTTC_SANITIZER_PYTHON"]
