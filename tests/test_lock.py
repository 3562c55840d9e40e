"""One process at a time: with the kernel's lock, without one, and with one that does not reach beyond its machine."""

import errno
import fcntl
import getpass
import json
import platform
import time
from pathlib import Path

import pytest
from mlemiss.pipeline.errors import InputError
from mlemiss.pipeline.stores import claim
from mlemiss.pipeline.stores.claim import only_one

from .processes import Running

HOLDER = """
import fcntl, sys, time
from pathlib import Path
from mlemiss.pipeline.stores import claim
claim.BEAT, claim.SETTLE = 0.3, 0.1
if "no-flock" in sys.argv:
    def flock(*_):
        raise OSError({no_locks}, "No locks available")
    fcntl.flock = flock
if "elsewhere" in sys.argv:
    claim._machine = lambda: "another machine"
    fcntl.flock = lambda *_: None  # one that does not reach beyond its machine
with claim.only_one(Path(sys.argv[1]), "X"):
    print("held", flush=True)
    time.sleep(60)  # until this is killed
""".replace("{no_locks}", str(errno.ENOLCK))


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Claims are watched often; a living holder, on a busy machine too, has time to show it."""
    monkeypatch.setattr(claim, "DEAD", 30.0)
    monkeypatch.setattr(claim, "BEAT", 0.3)
    monkeypatch.setattr(claim, "SETTLE", 0.1)


def no_flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.fixture
def holder(tmp_path, mlemiss):
    """Start a process that holds the lock."""

    def start(*how: str) -> Running:
        process = mlemiss.start(tmp_path / "x.lock", *how, code=HOLDER)
        process.until("held")
        return process

    return start


def refused(file: Path) -> str:
    with pytest.raises(InputError) as error, only_one(file, "X"):
        pytest.fail("two at once")
    return str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kernel", "no-flock", "elsewhere"])
def test_the_second_is_told_and_a_killed_holder_is_taken_over(how, holder, tmp_path, monkeypatch, capsys):
    first, file = holder(how), tmp_path / "x.lock"
    if how == "no-flock":
        monkeypatch.setattr(fcntl, "flock", no_flock)
    said = refused(file)
    assert (
        f"X is being made by another mlemiss (process {first.pid} on {platform.node()}, {getpass.getuser()}, since"
        in said
    )
    assert "Wait for it" in said
    first.kill()
    capsys.readouterr()
    monkeypatch.setattr(claim, "DEAD", 1.0)
    with only_one(file, "X") as held:
        assert ("no sign of life" in capsys.readouterr().err) == (how != "kernel")  # the kernel knows at once
        held.check(now=True)
    assert not (tmp_path / "x.lock.json").exists()
    with only_one(file, "X"):
        pass


@pytest.mark.parametrize("flock", [fcntl.flock, no_flock])
def test_a_claim_that_was_taken_over_is_noticed(flock, tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(claim, "BEAT", 60.0)  # no sign of life into the usurper's face
    with only_one(tmp_path / "x.lock", "X") as held:
        other = claim.Claim(tmp_path / "x.lock.json", "X is being made")
        other._write()
        with pytest.raises(InputError, match="is being made by another mlemiss now"):
            held.check(now=True)
    assert json.loads((tmp_path / "x.lock.json").read_text())["token"] == other.document["token"]


def test_other_errors_of_the_lock_are_errors(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output"), only_one(tmp_path / "x.lock", "X"):
        pass


def test_two_claims_at_the_same_moment(tmp_path, mlemiss):
    """Real processes, all at once, on a file system without locks: one works, the others are told."""
    processes = [mlemiss.start(tmp_path / "x.lock", "no-flock", code=HOLDER) for _ in range(4)]
    deadline = time.monotonic() + 60
    while sum(process.poll() is None for process in processes) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    said = [(process.stdout, process.stderr) for process in processes]
    assert sorted(out for out, _ in said) == ["", "", "", "held\n"], said
    assert sum("is being made by another mlemiss" in err for _, err in said) == 3
