"""`allowed_origins`: whose pages may connect, as the pages see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.broker.conftest import Events
from tests.browser.conftest import HTTP2, PLAIN, Client, Road, page_url
from tests.browser.driver import Page


def refused(page: Page, url: str) -> None:
    """A client whose connection the broker answers with 403, in the words of MQTT.js and of the browser."""
    before = len(page.said)
    name = f"refused by {url}"
    page.call("connect", name=name, url=url, options={})
    page.call("next", name=name, kind="close")
    assert page.call("unread", name=name, kind="connect") == []
    assert page.call("closes")[-1] == {"code": 1006, "wasClean": False}
    socket = page.sockets[-1]
    assert socket.url == url
    assert len(socket.errors) == 1
    assert socket.errors[0].endswith("Unexpected response code: 403")
    (said,) = page.said[before:]
    assert url in said
    assert "403" in said


@pytest.mark.parametrize("road", [PLAIN, HTTP2], ids=str)
def test_a_page_of_another_origin_is_refused(
    serve: Callable[..., Any], visit: Callable[..., Page], events: Events, road: Road
) -> None:
    """The page of the one that is allowed gets in; neither the listener's own does, nor the same host by another name."""
    home = serve(road)
    origin = page_url(home.urls[0]).rstrip("/")
    guarded = serve(road, allowed_origins=[origin])
    url = guarded.urls[0]

    page = visit(page_url(home.urls[0]))
    client = Client(page, url, 5)
    client.end()

    refused(visit(page_url(url)), url)
    refused(visit(page_url(home.urls[0]).replace("127.0.0.1", "localhost")), url)
    assert guarded.stats()["connects_accepted"] == 1
    if road is HTTP2:
        assert events.wait("http_refused", status=403)["detail"] == "pages of this origin may not connect"
    assert events.wait("http request refused")["detail"] == "pages of this origin may not connect"
