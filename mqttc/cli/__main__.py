"""``python -m mqttc.cli`` is ``mqttc``."""

import sys

from mqttc.cli.main import main

sys.exit(main())
