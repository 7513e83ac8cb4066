import subprocess
import sys
from pathlib import Path

import pytest

SERVER = Path(__file__).with_name("small_server.py")


@pytest.fixture
def server():
    """A small server in a process of its own: gives (process, base url)."""
    with subprocess.Popen([sys.executable, str(SERVER)], stdout=subprocess.PIPE, text=True) as process:
        port = process.stdout.readline().strip()
        yield process, f"http://127.0.0.1:{port}"
        process.kill()
