"""A fresh wheel puts one name into site-packages and works outside the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_wheel_installs_and_works_elsewhere(tmp_path):
    source = tmp_path / "source"  # the tracked files, so that nothing lying about is packed
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    names = listed.stdout.decode().split("\0") if listed.returncode == 0 else []
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path), str(source)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("mlemiss-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {name.split("/")[0] for name in packed} == {"mlemiss", wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    assert {f"mlemiss/data_manifests/{name}.csv" for name in ("ravdess", "enterface05.counts")} <= set(packed)
    templates = {
        name for name in names if name.endswith((".html", ".js")) and name.startswith(("pipeline/", "trainer/"))
    }
    assert templates and {f"mlemiss/{name}" for name in templates} <= set(packed)
    assert not any("test" in name for name in packed)
    # isolated from the checkout, whose editable install must not answer in the wheel's place
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import mlemiss.cli, mlemiss.pipeline.clips.datasets
print(mlemiss.cli.__file__, len(mlemiss.pipeline.clips.datasets.expected_clips("ravdess")))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    where, clips = result.stdout.split()
    assert where == str(tmp_path / "site" / "mlemiss" / "cli.py") and clips == "1152"
