"""The compiled executable: made, started, published through, ended."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("Cython")

from publish_check import publish_check

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("binary") / "mqttc-broker"
    tool = [sys.executable, "tools/build_binary.py", "--output", str(output)]
    done = subprocess.run(tool, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def test_it_is_an_executable_of_its_own(binary: Path):
    assert binary.read_bytes()[:2] != b"#!"
    done = subprocess.run([binary, "--version"], cwd="/", capture_output=True, text=True, check=True)
    assert re.fullmatch(r"mqttc-broker \d+\.\d+\.\d+\n", done.stdout)


def test_its_exit_codes_are_the_commands(binary: Path):
    done = subprocess.run([binary, "--set", "limits.no_such_key=1", "--check"], cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no_such_key" in done.stderr


def test_a_publish_goes_through_it(binary: Path):
    with subprocess.Popen([binary, "--listen", "tcp://127.0.0.1:0"], cwd="/", stderr=subprocess.PIPE, text=True) as broker:
        try:
            assert broker.stderr is not None
            said = []
            for line in broker.stderr:
                said.append(line)
                if line.strip().endswith("ready"):
                    break
            found = re.search(r"tcp://127\.0\.0\.1:(\d+)", "".join(said))
            assert found, said
            publish_check("127.0.0.1", int(found[1]))
            broker.send_signal(signal.SIGTERM)
            _, rest = broker.communicate(timeout=20)
            assert broker.returncode == 0, rest
        finally:
            if broker.poll() is None:
                broker.kill()
