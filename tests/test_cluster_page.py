"""The scripts of docs/cluster.md run as they are, on loopback: certificates, a scheduler, workers of both kinds."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from distributed import Client, Security

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [(DOCS / name).read_text(encoding="utf-8") for name in ("cluster.md", "kubernetes.md")]
BLOCKS = [block for page in PAGES for block in re.findall(r"```(\w+)\n(.*?)```", page, flags=re.S)]


@pytest.fixture
def scripts(tmp_path) -> Path:
    """Every script of the page that has a name, in a folder."""
    for language, block in BLOCKS:
        if language == "bash" and (name := re.search(r"^# ([\w-]+\.sh)\b", block, re.M)):
            text = block.replace("--protocol tls", "--protocol tls --host 127.0.0.1")
            (tmp_path / name[1]).write_text(text.replace("127.0.0.1:8787", "127.0.0.1:0"))
    return tmp_path


@pytest.mark.slow
def test_a_cluster_with_tls_and_workers_of_both_kinds(scripts):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TMPDIR": str(scripts)}
    environment |= {"GPUS": "0", "CORES": "2"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = f"tls://127.0.0.1:{port}"

    def start(*command: str) -> subprocess.Popen:
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(["bash", *command], cwd=scripts, env=environment, **streams)

    assert start("certs.sh", "certs").wait(60) == 0
    certs = scripts / "certs"
    assert all(path.stat().st_mode & 0o077 == 0 for path in (certs, *certs.iterdir()))
    names = {"tls_ca_file": "ca.pem", "tls_client_cert": "cert.pem", "tls_client_key": "key.pem"}
    security = Security(require_encryption=True, **{name: str(certs / file) for name, file in names.items()})
    with start("scheduler.sh", "certs", port) as scheduler, start("workers.sh", address, "certs") as workers:
        try:
            with Client(address, security=security, timeout=60) as client:
                client.wait_for_workers(2, timeout=60)
                found = client.scheduler_info()["workers"].values()
                assert sorted(worker["resources"].get("GPU", 0) for worker in found) == [0, 1]
                assert {(worker["nthreads"], worker["memory_limit"]) for worker in found} == {(1, 0)}
                assert client.submit(os.getenv, "CUDA_VISIBLE_DEVICES", resources={"GPU": 1}).result() == "0"
            with pytest.raises(OSError):
                Client(f"tcp://127.0.0.1:{port}", timeout=2)  # nobody without a certificate
            scheduler.terminate()
            workers.wait(60)  # workers end with their scheduler
        finally:
            scheduler.terminate()
            workers.terminate()


@pytest.mark.parametrize(("language", "block"), [b for b in BLOCKS if b[0] in ("bash", "yaml")])
def test_every_block_is_well_formed(language, block):
    if language == "bash":
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    else:
        assert all({"apiVersion", "kind", "metadata", "spec"} <= set(part) for part in yaml.safe_load_all(block))
