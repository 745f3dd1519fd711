"""``python -m mqttc`` is ``mqttc-broker``."""

import sys

from mqttc.cli.broker import main

sys.exit(main())
