"""The page that a listener shows, in a browser that keeps to the page's own security policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.conftest import ROADS, Road, page_url
from tests.browser.driver import Page

each_road = pytest.mark.parametrize("road", ROADS, ids=str)


@each_road
def test_the_page_is_styled_and_names_its_address(serve: Callable[..., Any], visit: Callable[..., Page], road: Road) -> None:
    url = serve(road).urls[0]
    page = visit(page_url(url), inject=False)
    assert page.status == 200
    assert page.evaluate("document.title") == "mqttc – MQTT broker"
    assert page.evaluate("document.querySelector('dd code').textContent") == url
    assert page.evaluate("document.compatMode") == "CSS1Compat"
    assert page.evaluate("getComputedStyle(document.querySelector('.card')).borderStyle") == "solid"  # the policy lets our style pass
    assert page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)") == []
    assert page.said == []


def test_nothing_that_gets_into_the_page_can_connect(serve: Callable[..., Any], visit: Callable[..., Page]) -> None:
    broker = serve(ROADS[0])
    url = broker.urls[0]
    page = visit(page_url(url), inject=False)
    violation = page.evaluate(
        "new Promise(resolve => {"
        "addEventListener('securitypolicyviolation', event => resolve(event.effectiveDirective));"
        f"new WebSocket('{url}', 'mqtt')"
        "})"
    )
    assert violation == "connect-src"
    assert page.sockets == [] or page.sockets[0].status == 0
    assert broker.stats()["accepted"] == 1
