"""Many machines: a real Dask scheduler and real workers on loopback, killed ones too; the serial run's bytes."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import distributed
import psutil
import pytest
from distributed.security import Security
from mlemiss.pipeline.clips.datasets import collect
from mlemiss.pipeline.clips.manifest import limit_clips
from mlemiss.pipeline.console import interruptible
from mlemiss.pipeline.encoders import Weights
from mlemiss.pipeline.errors import InputError, MachineError
from mlemiss.pipeline.media.decode import DEFAULT_LIMITS
from mlemiss.pipeline.media.process import ffmpeg_binary
from mlemiss.pipeline.run import cluster, connect, extract
from mlemiss.pipeline.run.forking import start_server
from mlemiss.pipeline.run.plan import FeatureRequest, Output, Task, make_plan
from mlemiss.pipeline.run.run import claimed, lacking, publish, run
from mlemiss.pipeline.run.sources import Source
from mlemiss.pipeline.stores.checksums import damaged_files

from .preprocessing import SIX, SMALL, content, options, staged
from .processes import Forks, Running
from .servers import free_port

IMPATIENT = "from mlemiss.pipeline.run import connect; connect.CONNECT_SECONDS = 1"


class DaskProcesses:
    """`dask scheduler` and `dask worker` processes, ended with the test; a worker has no nanny that replaces it."""

    def __init__(self, forks: Forks, tls: tuple[str, ...] = ()):
        self.forks, self.tls = forks, tls
        port = str(free_port())
        self.address = f"{'tls' if tls else 'tcp'}://127.0.0.1:{port}"
        own = ["--host", "127.0.0.1", "--port", port, "--dashboard-address", "127.0.0.1:0"]
        self.scheduler = self.start("scheduler", *own, *(["--protocol", "tls"] if tls else []))

    def start(self, kind: str, *options: str) -> Running:
        return self.forks.start(*options, *self.tls, code=f"from distributed.cli.dask_{kind} import main; main()")

    def worker(self, *options: str) -> Running:
        own = ["--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard", "--no-nanny"]
        return self.start("worker", self.address, *own, "--local-directory", str(self.forks.folder), *options)

    def older_worker(self) -> Running:
        """Start a worker that has another version of torch."""
        script = self.forks.folder / "older.py"
        script.write_text(
            "import mlemiss.pipeline.run.parts as parts; parts.versions = lambda more=(): {'torch': '0.1'}"
        )
        return self.worker("--preload", str(script))


@pytest.fixture
def dask_processes(mlemiss):
    return lambda *tls: DaskProcesses(mlemiss, tls)


def wait_for_a_result(stores: Path, client: Running) -> None:
    """Wait until the run has kept a clip's result."""
    while not staged(stores) and client.poll() is None:
        time.sleep(0.01)


@pytest.mark.slow
def test_three_workers_one_killed_give_the_serial_bytes(dask_processes, six, synthetic_ravdess, tmp_path, mlemiss):
    processes = dask_processes()
    workers = [processes.worker() for _ in range(3)]
    stores, report = tmp_path / "stores", tmp_path / "report.html"
    arguments = options(synthetic_ravdess, stores, *SIX, "--scheduler", processes.address)
    client = mlemiss.start(*arguments, "--performance-report", report)
    wait_for_a_result(stores, client)
    workers[0].kill()  # and nobody replaces it, as when a machine goes
    assert client.wait() == 0 and "dashboard at http://127.0.0.1" in client.stderr, client.stderr
    assert content(stores) == six.content
    assert all(damaged_files(path) == [] for path in stores.glob("*.zarr"))
    assert not list(stores.glob(".partial/*.zarr")) and not list(stores.glob(".partial/*.token"))
    assert "<html" in report.read_text(encoding="utf-8")[:2000].lower()


@pytest.mark.slow
def test_workers_with_a_gpu_compute_what_the_others_decode(dask_processes, six, synthetic_ravdess, tmp_path, mlemiss):
    """The two stages on different workers, over TLS. The one said to have a GPU has none: the CNNs run on its CPU."""
    pem = tmp_path / "both.pem"
    subject = ["-subj", "/CN=mlemiss", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", pem, "-out", tmp_path / "cert.pem"]
    try:
        subprocess.run([*made, *subject], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl to make a certificate")
    pem.write_text(pem.read_text() + (tmp_path / "cert.pem").read_text())
    theirs = {"ca": "--tls-ca-file", "cert": "--tls-cert", "key": "--tls-key"}
    processes = dask_processes(*(part for option in theirs.values() for part in (option, str(pem))))
    workers = [processes.worker(), processes.worker("--resources", "GPU=1")]
    for worker in workers:
        worker.until("Registered to")
    arguments = options(synthetic_ravdess, tmp_path / "stores", *SIX, "--device", "cpu")
    tls = [part for name in theirs for part in (f"--tls-{name}", pem)]
    result = mlemiss(*arguments, "--scheduler", processes.address, *tls)
    assert result.returncode == 0 and "decoding on 1 worker, CNNs on 1 with a GPU" in result.stderr, result.stderr
    assert content(tmp_path / "stores") == six.content
    assert all("Traceback" not in worker.stderr for worker in workers)
    refused = mlemiss(*arguments, "--scheduler", processes.address, before=IMPATIENT)
    assert refused.returncode == 2 and "no Dask scheduler answers there" in refused.stderr, refused.stderr


def test_who_decodes_saves_the_media_and_passes_on_what_networks_read(six, synthetic_ravdess, tmp_path):
    found = collect("ravdess", synthetic_ravdess)
    six_clips = replace(found, clips=limit_clips(found.clips, 6))
    request = FeatureRequest({SMALL: Weights("random")}, media="keep")
    plan = make_plan(six_clips, tmp_path, request)

    def by_two(tasks: list[Task]):
        decoded = [extract.decode_and_save(task) for task in tasks]
        assert staged(tmp_path) == len(tasks)  # the media, before any network
        assert {(one.clip.waveform, one.clip.frames is None) for one in decoded} == {(None, False)}
        networks = [extract.of_networks(task) for task in tasks]
        assert {output.features for task in networks for output in task.outputs} == {SMALL}
        yield from extract.encode(networks, decoded)
        assert staged(tmp_path) == 2 * len(tasks)

    with claimed(plan) as claims:
        outcomes = list(run(plan, lacking(plan), by_two, claims))
        publish(plan, claims)
    assert len(outcomes) == 6 and all(set(o.seconds) == {"decode", "cnn", "write"} for o in outcomes)
    assert content(tmp_path) == six.content


@pytest.mark.slow
def test_workers_that_all_go_are_said_and_waited_for(dask_processes, six, synthetic_ravdess, tmp_path, mlemiss):
    processes = dask_processes()
    only = processes.worker()
    stores = tmp_path / "stores"
    client = mlemiss.start(*options(synthetic_ravdess, stores, *SIX, "--scheduler", processes.address))
    wait_for_a_result(stores, client)
    only.kill()
    client.until(f"no worker is left at {processes.address}")
    processes.worker()
    assert client.wait() == 0 and "workers are back" in client.stderr, client.stderr
    assert content(stores) == six.content


@pytest.mark.slow
def test_a_result_that_goes_with_its_worker_is_computed_again(dask_processes, monkeypatch):
    """It was there, but nobody had asked for it: that no worker is left is said, as ever."""
    processes = dask_processes()
    only, said = processes.worker(), []

    def say(text: str) -> None:
        said.append(text)
        if "no worker is left" in text:
            processes.worker()

    monkeypatch.setattr(cluster, "say", say)
    with connect.connected(connect.Scheduler(processes.address)) as client:
        future = client.submit(int, "7")
        distributed.wait(future)
        only.kill()
        assert cluster._Schedule(client)._result(future) == 7
    assert any("no worker is left" in text for text in said)


@pytest.mark.slow
def test_a_scheduler_that_goes_is_said(dask_processes, synthetic_ravdess, tmp_path, mlemiss):
    processes = dask_processes()
    processes.worker()
    stores = tmp_path / "stores"
    arguments = options(synthetic_ravdess, stores, "--media", "only", "--scheduler", processes.address)
    client = mlemiss.start(*arguments)
    wait_for_a_result(stores, client)
    processes.scheduler.kill()
    assert client.wait() == 2 and f"the Dask cluster at {processes.address} is gone" in client.stderr, client.stderr
    assert "finished clips are kept" in client.stderr and staged(stores)


@pytest.mark.slow
def test_what_a_cluster_lacks_is_said(dask_processes, synthetic_ravdess, tmp_path, mlemiss, monkeypatch, capsys):
    arguments = options(synthetic_ravdess, tmp_path / "stores", "--limit", 2)
    processes = dask_processes()
    result = mlemiss(*arguments, "--scheduler", "tcp://127.0.0.1:9", before=IMPATIENT)
    assert result.returncode == 2 and "no Dask scheduler answers there" in result.stderr
    monkeypatch.setattr(connect, "WORKER_SECONDS", 1)
    with pytest.raises(InputError, match="no worker in 1 s"), connect.connected(connect.Scheduler(processes.address)):
        pass
    assert f"waiting up to 1 s for a first worker at {processes.address}" in capsys.readouterr().err
    result = mlemiss(*arguments, "--scheduler", processes.address, "--workers", 2)
    assert result.returncode == 2 and "exclude each other" in result.stderr
    result = mlemiss(*arguments, "--tls-ca", "ca.pem")
    assert result.returncode == 2 and "--scheduler ADDRESS" in result.stderr
    processes.older_worker()
    result = mlemiss(*arguments, "--scheduler", processes.address)
    assert result.returncode == 2 and "the same versions everywhere" in result.stderr, result.stderr
    assert not list((tmp_path / "stores").glob(".partial/*.token"))


@pytest.mark.slow
def test_a_worker_that_joins_late_is_checked(dask_processes, synthetic_ravdess, tmp_path, mlemiss):
    """At its first task, before anything it computes is kept."""
    processes = dask_processes()
    only = processes.worker()
    stores = tmp_path / "stores"
    client = mlemiss.start(*options(synthetic_ravdess, stores, "--media", "only", "--scheduler", processes.address))
    wait_for_a_result(stores, client)
    only.kill()
    kept = set(stores.rglob("*.npz"))
    processes.older_worker()
    assert client.wait() == 2 and "the same versions everywhere" in client.stderr, client.stderr
    assert "Traceback" not in client.stderr
    assert set(stores.rglob("*.npz")) == kept and content(stores) == {} and not list(stores.glob(".partial/*.token"))


def test_a_clip_that_is_gone_with_its_root_is_the_machines_fault(tmp_path):
    task = Task("0", (0,), tmp_path, tmp_path / "clip.mp4", (), None, DEFAULT_LIMITS, Source("0" * 64, (1, 1)))
    with pytest.raises(MachineError, match=f"no clips at {tmp_path} on "):
        extract.decode(task)
    (tmp_path / "another.mp4").touch()
    assert "the file changed" in extract.decode(task).clip.causes["visual"]


@pytest.mark.slow
def test_device_cuda_waits_for_a_worker_with_a_gpu(dask_processes, monkeypatch, capsys):
    processes = dask_processes()
    processes.worker()
    with connect.connected(connect.Scheduler(processes.address)) as client:
        monkeypatch.setattr(connect, "WORKER_SECONDS", 1)
        with pytest.raises(InputError, match="no worker of the cluster has the resource GPU after 1 s"):
            connect.device_on(client, "cuda")
        assert connect.device_on(client, "auto") == "cpu" and "--device cuda waits for one" in capsys.readouterr().err
        monkeypatch.setattr(connect, "WORKER_SECONDS", 600)
        processes.worker("--resources", "GPU=1")
        assert connect.device_on(client, "cuda") == connect.device_on(client, "auto") == "cuda"


def output(work: Path, device: str = "cpu") -> Output:
    (work / "clips").mkdir(parents=True)
    return Output("toy", "0", work / "final", work, {}, device=device)


def task_of(row: int, to: Output) -> Task:
    return Task(str(row), (row,), to.work, to.work / "x", (to,), None, DEFAULT_LIMITS, Source(str(row)))


@pytest.mark.parametrize(("device", "gpu"), [("cpu", False), ("mps", False), ("cuda", True), ("cuda:1", True)])
def test_networks_of_any_cuda_device_run_on_workers_with_gpus(tmp_path, device, gpu):
    assert extract.wants_gpu([task_of(0, output(tmp_path, device))]) == gpu


def schedule(tasks: list[Task], fatal: set[int]) -> cluster._Schedule:
    """Of these suspects, the fatal ones take their workers down again."""
    made = cluster._Schedule(None, suspects=tasks)
    made._alone = lambda task: None if task.rows[0] in fatal else extract.Outcome(task.rows)
    return made


def test_clips_that_take_their_workers_down_are_told_from_machines_that_lack_memory(tmp_path):
    to = output(tmp_path)
    tasks = [task_of(i, to) for i in range(5)]
    for suspects, fatal in ((tasks[:1], {0}), (tasks, {0, 1, 3})):
        found = {outcome.rows[0]: outcome.failed for outcome in schedule(suspects, fatal)._try_suspects()}
        assert {index for index, cause in found.items() if "died on this clip twice" in cause} == fatal
        assert len(found) == len(suspects) and {i for i in range(5) if to.part(str(i)).exists()} == fatal
        for index in fatal:
            to.part(str(index)).unlink()
    for count in (2, 3, 5):
        with pytest.raises(MachineError, match="die on whatever clip"):
            list(schedule(tasks[:count], {0, 1, 2, 3, 4})._try_suspects())
        assert not list(tmp_path.rglob("*.npz"))


def test_tasks_for_a_gpu_go_to_one_whoever_is_there_first(tmp_path):
    task = task_of(0, output(tmp_path, "cuda"))
    planned = schedule([], set())
    planned._count = lambda: None
    planned._compute = lambda tasks: iter([[extract.Outcome((0,))]] if planned._with_gpu else [])
    assert [outcome.rows for outcome in planned.run([task])] == [(0,)]


@pytest.mark.parametrize(("visible", "used"), [(None, ["0", "1"]), ("3,GPU-5f,6", ["3", "GPU-5f"])])
def test_a_worker_for_each_gpu_that_the_run_may_use(monkeypatch, visible, used):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    spec = {"cls": None, "options": {"nthreads": 1, "env": {"HOME": "/"}}}
    asked = []
    made = SimpleNamespace(new_worker_spec=lambda: {0: spec}, worker_spec={0: spec}, scale=asked.append)
    cluster._add_gpu_workers(made, 2)
    first, *others = (one["options"] for one in made.worker_spec.values())
    assert asked == [3] and first == spec["options"]
    assert [one["env"] for one in others] == [{"HOME": "/", "CUDA_VISIBLE_DEVICES": name} for name in used]
    assert all(one["resources"] == {"GPU": 1} for one in others)


@pytest.mark.slow
def test_a_single_clip_that_is_fatal_is_recorded(synthetic_ravdess, tmp_path, mlemiss):
    """One added to a finished store, say: there is no other clip to show that workers live."""
    arguments = options(synthetic_ravdess, tmp_path / "stores", "--media", "only", "--limit", 1, "--workers", 1)
    poison = "import os\nfrom mlemiss.pipeline.media import decode\ndecode.read_clip = lambda *arguments: os._exit(1)\n"
    (tmp_path / "fatal.py").write_text(poison)
    # Dask restarts no worker that dies before its nanny, which looks every 50 ms, knows that it has started.
    slow = "from distributed.nanny import WorkerProcess\nWorkerProcess._init_msg_interval = 1"
    result = mlemiss(*arguments, before=slow, DASK_DISTRIBUTED__WORKER__PRELOAD=str([str(tmp_path / "fatal.py")]))
    assert result.returncode == 1 and "died on this clip twice" in result.stderr, result.stderr
    assert mlemiss(*arguments, "--retry-failed", "--workers", 0).returncode == 0


async def answers(port) -> bool:
    """Return whether Dask shakes hands there without the run's keys; a worker or scheduler would then run any code."""
    for protocol, security in (("tcp", Security()), ("tls", Security.temporary())):
        with contextlib.suppress(OSError, TimeoutError, ValueError):
            keys = security.get_connection_args("client")
            (await distributed.comm.connect(f"{protocol}://{port.ip}:{port.port}", timeout=2, **keys)).abort()
            return True
    return False


async def answering(ports) -> list[bool]:
    return await asyncio.gather(*map(answers, ports))


@pytest.mark.slow
def test_nothing_listens_beyond_loopback_or_answers_without_keys(synthetic_ravdess, tmp_path, mlemiss):
    """And on Linux workers are forked from a process that has no threads, whose locks a fork could leave held."""
    arguments = options(synthetic_ravdess, tmp_path / "stores", "--limit", 4, "--workers", 2, "--media", "only")
    client = mlemiss.start(*arguments)
    client.until("2 workers")
    children = psutil.Process(client.pid).children()
    servers = [child for child in children if "forkserver" in " ".join(child.cmdline())]
    # What a process reads as it starts, which a worker that is forked never does.
    assert all(server.environ().items() >= {"MALLOC_TRIM_THRESHOLD_": "65536"}.items() for server in servers)
    assert all(server.environ()["OPENBLAS_NUM_THREADS"] == "1" for server in servers)
    family = [psutil.Process(client.pid), *psutil.Process(client.pid).children(recursive=True)]
    ports = {c.laddr for process in family for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    listening, threads = {port.ip for port in ports}, {server.num_threads() for server in servers}
    assert ports and not any(asyncio.run(answering(ports)))
    while not list((tmp_path / "stores").glob("*.zarr")):
        for process in family:
            with contextlib.suppress(psutil.Error):
                listening |= {c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        threads |= {server.num_threads() for server in servers if server.is_running()}
        assert client.poll() in (None, 0)
        time.sleep(0.05)
    assert client.wait() == 0 and listening == {"127.0.0.1"}
    assert sys.platform != "linux" or (len(servers) == 1 and threads == {1})


@pytest.mark.slow
def test_workers_import_nothing_of_the_working_folder(synthetic_ravdess, tmp_path):
    """Where a file may have any library's name: it is the command's own path that counts."""
    here, script = tmp_path / "here", tmp_path / "there" / "run.py"
    for folder in (here, script.parent):
        folder.mkdir()
    for name in ("zarr", "torch", "queue"):
        (here / f"{name}.py").write_text("raise SystemExit('of the working folder')\n")
    script.write_text("from mlemiss.cli import main\nif __name__ == '__main__':\n    main()\n")
    told, ffmpeg = tmp_path / "told", tmp_path / "ffmpeg"
    ffmpeg.write_text(f'#!/bin/sh\nenv > {told}\nexec {ffmpeg_binary()} "$@"\n')
    ffmpeg.chmod(0o755)
    arguments = options(synthetic_ravdess, tmp_path / "stores", "--limit", 2, "--workers", 2, "--media", "only")
    command = [sys.executable, script, *arguments]
    environment = os.environ | {"MLEMISS_FFMPEG": str(ffmpeg)}
    given = {"cwd": here, "env": environment, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run(list(map(str, command)), **given)
    assert done.returncode == 0 and "2 done, 0 failed" in done.stderr, done.stderr
    found = dict(line.split("=", 1) for line in told.read_text().splitlines() if line.startswith("PYTHON"))
    assert found.get("PYTHONPATH", "") == environment.get("PYTHONPATH", ""), "what workers start is not theirs"
    assert not found.get("PYTHONSAFEPATH")


def test_the_server_leaves_the_environment_as_it_was(monkeypatch):
    """Whoever asks for it, and however many at once."""
    monkeypatch.setattr("multiprocessing.forkserver.ensure_running", lambda: time.sleep(0.05))
    monkeypatch.setenv("PYTHONPATH", "mine")
    monkeypatch.setattr("multiprocessing.set_forkserver_preload", lambda names: None)
    before = dict(os.environ)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda networks: start_server(networks), (False, True, False)))
    assert dict(os.environ) == before
    for number in (signal.SIGINT, signal.SIGTERM):
        monkeypatch.setattr("multiprocessing.forkserver.ensure_running", partial(signal.raise_signal, number))
        with interruptible(), pytest.raises(KeyboardInterrupt):
            start_server()
        assert dict(os.environ) == before and not signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.skipif(sys.platform != "linux", reason="no server there")
def test_what_is_forked_from_the_server_lets_dask_say_nothing():
    said = """
import logging, multiprocessing
from mlemiss.pipeline.run.forking import start_server
start_server()
said = logging.getLogger("distributed.comm.tcp").warning
child = multiprocessing.get_context("forkserver").Process(target=said, args=("said late",))
child.start()
child.join()
print(child.exitcode)
"""
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.slow
def test_an_interruption_while_workers_start_ends_with_its_line(synthetic_ravdess, tmp_path, mlemiss):
    """Whatever Dask has to say after it, of connections that break."""
    arguments = options(synthetic_ravdess, tmp_path / "stores", "--limit", 4, "--workers", 2, "--media", "only")
    say = "logging.getLogger('distributed.comm.tcp').warning, 'said late'"
    late = f"import atexit, logging; atexit.register({say})"
    for pause in (0.2, 1.0):
        client = mlemiss.start(*arguments, before=late)
        client.until("waiting for 2 worker processes")
        time.sleep(pause)
        os.kill(client.pid, signal.SIGTERM)
        assert client.wait() == 128 + signal.SIGTERM
        assert client.stderr.splitlines()[-1].startswith("interrupted;"), client.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="no server there")
@pytest.mark.parametrize("starting", [True, False])
def test_ctrl_c_while_the_server_starts_or_imports_shows_no_traceback(synthetic_ravdess, tmp_path, starting):
    """It goes to every process of the terminal."""
    imported = tmp_path / "imported"
    note = (
        f"lambda event, args: event == 'import' and args[0] == 'distributed' and open({str(imported)!r}, 'w').close()"
    )
    slow = (
        f"import sys, time\nif 'forkserver' in str(sys.orig_argv):\n    sys.addaudithook({note})\n    time.sleep(2)\n"
    )
    (tmp_path / "sitecustomize.py").write_text(slow if starting else "")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    arguments = options(synthetic_ravdess, tmp_path / "stores", "--limit", 4, "--workers", 2, "--media", "only")
    command = list(map(str, [sys.executable, "-m", "mlemiss.cli", *arguments]))
    given = {"env": environment, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **given) as client:
        for line in client.stderr:
            if line.startswith("waiting for 2"):
                break
        time.sleep(0.7)  # of some two seconds
        os.killpg(client.pid, signal.SIGINT)
        rest = client.stderr.read()  # to its end, when the server has ended, too
    assert client.returncode == 130 and rest.startswith("interrupted;") and "Traceback" not in rest, rest
    assert not imported.exists(), "what workers need, when nobody needs them"
