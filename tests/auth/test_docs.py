"""The examples of docs/authentication.md are configurations and programs that work."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from mqttc.auth.callback import _outcome
from mqttc.auth.claims import grant_of
from mqttc.auth.source import Answer
from mqttc.config import Config

PAGE = (Path(__file__).parents[2] / "docs" / "authentication.md").read_text("utf-8")


def examples(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_there_is_one_for_each_authenticator() -> None:
    from mqttc.config_auth import SOURCES

    configured = {source for example in examples("toml") for source in Config.of(tomllib.loads(example)).auth.sources}
    assert configured == set(SOURCES)


@pytest.mark.parametrize("example", examples("python"))
def test_programs(example: str, nothing_left: None) -> None:
    exec(compile(example, "authentication.md", "exec"), {"__name__": "example"})


def test_answers_and_rules() -> None:
    (answer,) = examples("json")
    assert _outcome(json.loads(answer)).answer is Answer.ALLOW
    rules = re.findall(r"`(\[\{.*?\}\]|\{\"publish.*?\})`", PAGE, re.DOTALL)
    assert len(rules) == 2
    for text in rules:
        assert grant_of(json.loads(text)).rules
