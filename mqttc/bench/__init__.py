"""``mqttc-bench``: loads any MQTT broker and says what it did, exactly.

``profile`` describes a run, ``scenarios`` turn a profile into clients of ``mqttc.load``, ``run`` drives them and measures,
``report`` shows results.
"""
