"""The programs of examples/ are listed where users look for them, and each is one that some test runs."""

import re
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
RUN_BY = {
    "asgi_*.py": "tests/asgi/test_asgi.py",
    "client_*.py": "tests/client/test_docs.py",
    "embed_*.py": "tests/embed/test_docs.py",
    "service.py": "tests/embed/test_service.py",
    "systemd/*": "tests/control/test_systemd.py",
    "test_with_mqttc.py": "tests/plugin/test_docs.py",
}


def programs() -> list[str]:
    found = [path for path in EXAMPLES.rglob("*") if path.is_file() and "__pycache__" not in path.parts and path.name != "README.md"]
    return sorted(path.relative_to(EXAMPLES).as_posix() for path in found)


def test_the_list_is_true() -> None:
    listed = re.findall(r"\]\(([^)]+)\)", (EXAMPLES / "README.md").read_text("utf-8"))
    assert sorted(listed) == programs()


def test_each_is_run_by_a_test() -> None:
    run = {path.relative_to(EXAMPLES).as_posix() for pattern in RUN_BY for path in EXAMPLES.glob(pattern)}
    assert sorted(run) == programs()
    assert [test for test in RUN_BY.values() if not (EXAMPLES.parent / test).is_file()] == []
