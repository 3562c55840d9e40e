"""Clips for the tests: synthetic ones made once a session, real ones where MLEMISS_SHARED_DATA says they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = "timm:mobilenetv3_small_050"  # the backbone of tests that are not about backbones


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real clips (RAVDESS sample, files decoders trip over); skips where there is none."""
    folder = os.environ.get("MLEMISS_SHARED_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MLEMISS_SHARED_DATA names no folder of real clips")
    return Path(folder)


@pytest.fixture(scope="session")
def synthetic_ravdess(tmp_path_factory) -> Path:
    """Three subjects, twelve clips each, in the RAVDESS layout. Read only."""
    from mlemiss.pipeline.synth import synthesize

    root = tmp_path_factory.mktemp("ravdess")
    synthesize(root, subjects=3, clips_per_subject=12, seed=7, workers=2)
    return root


@pytest.fixture
def mlemiss(tmp_path):
    """Run the installed command as a user does: mlemiss("list", "datasets") -> CompletedProcess of text."""

    def run(*arguments: object, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "mlemiss.cli", *map(str, arguments)]
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ | environment, text=True, capture_output=True, timeout=timeout
        )

    return run
