"""sweep.py --slurm: with stand-ins for sbatch and squeue, and (slow) with a Slurm of one node on loopback."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import finished_sweep, losses_of, quick_fits, rows_of, run_script, run_sweep, wait_for

from isoflop.sweep import jobs, slurm
from isoflop.sweep.results import ResultsFile

SIZES = "--n_embds 8 16 --n_layers 1 1 --block_size 32 --val_tokens 1024 --device cpu --dtype float32".split()
BUDGETS = ["--flop_budgets", "1e8", "2e8"]


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    quick_fits(monkeypatch)
    monkeypatch.setattr(slurm, "POLL_S", (0.05, 0.1))


@pytest.fixture(scope="module")
def swept(toy_data, tmp_path_factory):
    """(folder, flags) of a sweep of 4 cells, that ran here."""
    folder = tmp_path_factory.mktemp("swept") / "out"
    flags = [*BUDGETS, *SIZES, "--data_dir", toy_data, "--out_dir"]
    return finished_sweep(folder, flags)


# ----- stand-ins -----

SBATCH = """#!/bin/bash
echo "$@" >> "$FAKE/calls"
case " $* " in
*" --bogus"*) echo "sbatch: unrecognized option '--bogus'" >&2; exit 1;;
*" --test-only "*) exit 0;;
*" --late"*) echo "sbatch: error: Batch job submission failed" >&2; exit 1;;
esac
array=$(( $(cat "$FAKE/last" 2>/dev/null || echo 40) + 1 ))
echo $array > "$FAKE/last"
task=0
while read -r line; do
    task=$((task + 1))
    folder=$(sed 's/.*--out_dir \\([^ ]*\\).*/\\1/' <<< "$line")
    id=${folder##*/}
    state=$(cat "$FAKE/state/$id" 2>/dev/null || echo COMPLETED)
    if [ $state = COMPLETED ]; then mkdir -p "$folder"; cp "$FAKE/cells/$id/run.json" "$folder"; fi
    echo "last words of $id" > "$(dirname "${@: -1}")/${array}_$task.log"
    echo "${array}_$task $state" >> "$FAKE/queue"
done < "${@: -1}"
echo $array
"""
SQUEUE = """#!/bin/bash
array=$(sed 's/.*-j \\([0-9]*\\).*/\\1/' <<< "$*")
grep "^${array}_" "$FAKE/queue" && exit 0
echo "slurm_load_jobs error: Invalid job id specified" >&2
exit 1
"""


@pytest.fixture
def fake(swept, tmp_path, monkeypatch):
    """A folder with sbatch and squeue, first on the PATH. sbatch takes the records of `swept` for those of its jobs;
    state/RUN_ID has the state of a job that leaves none. calls has the words of every sbatch."""
    folder = tmp_path / "fake"
    (folder / "state").mkdir(parents=True)
    shutil.copytree(swept[0] / "cells", folder / "cells")
    for name, text in {"sbatch": SBATCH, "squeue": SQUEUE}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(folder))
    return folder


def arrays(fake) -> list[str]:
    """The --array of each submission."""
    return re.findall(r"--array=(\S+) --chdir", (fake / "calls").read_text())


@pytest.mark.slow
def test_an_array_leaves_the_sweep_s_own_rows(swept, fake, tmp_path, capsys, monkeypatch):
    folder, flags = swept
    monkeypatch.setattr(slurm, "most_tasks", lambda: 3)
    assert run_sweep(*flags, tmp_path / "out", "--slurm", "--time=10 -p main", "--workers", 2) == 0
    assert losses_of(tmp_path / "out") == losses_of(folder)
    assert arrays(fake) == ["1-3%2", "1-1%2"] and "--time=10 -p main" in (fake / "calls").read_text()
    assert ResultsFile(tmp_path / "out").cut_off() == 0
    before = (tmp_path / "out" / "runs.csv").read_bytes()
    assert run_sweep(*flags, tmp_path / "out", "--slurm", "--time=10") == 0
    assert len(arrays(fake)) == 2 and (tmp_path / "out" / "runs.csv").read_bytes() == before


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED", "TIMEOUT"])
def test_jobs_without_a_record_have_no_row_and_run_again(swept, fake, tmp_path, capsys, state):
    folder, flags = swept
    bad = sorted(path.name for path in (folder / "cells").iterdir())[:2]
    for run_id in bad:
        (fake / "state" / run_id).write_text(state)
    assert run_sweep(*flags, tmp_path / "out", "--slurm", "") == 1
    out = capsys.readouterr().out
    assert "2 of 4 cells have no result (2 not run)" in out
    for run_id in bad:
        assert re.search(rf"{run_id} \| job 41_\d {state.lower()}: last words of {run_id}; the cell is left", out)
    assert ResultsFile(tmp_path / "out").cut_off() == 0, "they never started"
    shutil.rmtree(fake / "state")
    assert run_sweep(*flags, tmp_path / "out", "--slurm", "") == 0
    assert arrays(fake) == ["1-4", "1-2"] and losses_of(tmp_path / "out") == losses_of(folder)


def test_jobs_in_the_queue_are_not_submitted_again(swept, fake, tmp_path, capsys):
    folder, flags = swept
    ids = sorted(path.name for path in (folder / "cells").iterdir())
    for run_id in ids:
        (fake / "state" / run_id).write_text("PENDING")
    for _ in range(2):
        assert run_sweep(*flags, tmp_path / "out", "--slurm", "", "--no-wait") == 0
    assert arrays(fake) == ["1-4"] and "4 cells are in Slurm's queue already: array 41" in capsys.readouterr().out
    begun = ResultsFile(tmp_path / "out").cut_off()
    assert begun == pytest.approx(6e8, rel=0.02), "each counts once"
    shutil.copytree(fake / "cells", tmp_path / "out" / "cells")
    shutil.rmtree(tmp_path / "out" / "cells" / ids[0])
    assert run_sweep(*flags, tmp_path / "out", "--collect", tmp_path / "out" / "cells") == 1
    out = capsys.readouterr().out
    assert "collected 3 runs" in out and re.search(r"not run \([0-9a-f]{12}, job 41_\d pending, last words", out)
    (fake / "queue").write_text((fake / "queue").read_text().replace("PENDING", "COMPLETED"))
    (fake / "state" / ids[0]).unlink()
    assert run_sweep(*flags, tmp_path / "out", "--slurm", "") == 0
    assert arrays(fake) == ["1-4", "1-1"] and losses_of(tmp_path / "out") == losses_of(folder)


def test_a_cap_holds_for_what_is_submitted(swept, fake, tmp_path, capsys):
    _, flags = swept
    assert run_sweep(*flags, tmp_path / "out", "--slurm", "", "--total_flops", 2.5e8) == 1
    assert arrays(fake) == ["1-2"] and "stopped: --total_flops" in capsys.readouterr().out
    assert len(rows_of(tmp_path / "out")) == 2


MISTAKES = {
    "unrecognized option '--bogus'": ["--slurm", "--bogus"],
    "--slurm --array=1-2: the sweep sets it": ["--slurm", "--array=1-2 --time=3"],
    "No closing quotation": ["--slurm", "--time='3"],
    "give --dtype bfloat16": ["--slurm", "--gpus-per-task=1"],
}


@pytest.mark.parametrize("said", MISTAKES)
def test_mistakes_are_one_line_and_nothing_is_written(swept, fake, tmp_path, capsys, monkeypatch, said):
    monkeypatch.setattr("isoflop.distributed.pick_device", lambda requested: "cpu")
    flags = [*BUDGETS, *SIZES[:-4], "--data_dir", swept[1][-2], "--out_dir", tmp_path / "out"]
    assert run_sweep(*flags, *MISTAKES[said]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_without_slurm_the_way_out_is_named(swept, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_sweep(*swept[1], tmp_path / "out", "--slurm", "") == 2
    err = capsys.readouterr().err
    assert "use --print_commands" in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_what_sbatch_refuses_late_is_not_charged(swept, fake, tmp_path, capsys):
    assert run_sweep(*swept[1], tmp_path / "out", "--slurm", "--late") == 2
    err = capsys.readouterr().err
    assert "Batch job submission failed" in err and err.count("\n") == 1
    assert ResultsFile(tmp_path / "out").spent() == 0


def test_an_array_without_any_record_is_an_error(swept, fake, tmp_path, capsys):
    for path in (swept[0] / "cells").iterdir():
        (fake / "state" / path.name).write_text("FAILED")
    assert run_sweep(*swept[1], tmp_path / "out", "--slurm", "") == 2
    assert "none of the 4 jobs has left a record" in capsys.readouterr().err


# ----- a real one -----

CONF = """ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """SLURM_CONF names a Slurm of this machine's own, with two CPUs, that ends with the tests."""
    path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
    programs = ["sbatch", "munged", "slurmctld", "slurmd"]
    missing = [name for name in programs if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"Slurm is not installed here ({', '.join(missing)}): apt-get install slurm-wlm munge")
    import getpass

    folder, host = tmp_path_factory.mktemp("slurm"), socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=host, user=getpass.getuser(), folder=folder, ports=free_ports(2)))
    files = [f"--{key}={folder}/munge.{key.split('-')[0]}" for key in ("socket", "pid-file", "log-file", "seed-file")]
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key", *files],
        ["slurmctld", "-D", "-f", conf],
        ["slurmd", "-D", "-f", conf, "-N", host],
    ]
    env, daemons = {**os.environ, "PATH": path, "SLURM_CONF": str(conf)}, []
    with pytest.MonkeyPatch.context() as patch, open(folder / "daemons.log", "wb") as log:
        patch.setenv("SLURM_CONF", str(conf))
        try:
            for command in commands:
                daemons.append(subprocess.Popen(list(map(str, command)), env=env, stdout=log, stderr=log))
                time.sleep(1)
            until, idle = time.monotonic() + 30, False
            while time.monotonic() < until and not idle:
                time.sleep(0.5)
                idle = "idle" in subprocess.run(["sinfo", "-h"], env=env, capture_output=True, text=True).stdout
            if not idle:
                last = (folder / "daemons.log").read_text(errors="replace").strip().splitlines()[-1:]
                pytest.skip(f"Slurm is installed, and could not be started: {last}")
            yield folder
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
            for daemon in daemons:
                daemon.wait(20)


def task_of(folder, run_id) -> str:
    return slurm.submitted(folder)[run_id]


def log_of(folder, run_id) -> str:
    path = folder / "slurm" / f"{task_of(folder, run_id)}.log"
    return path.read_text() if path.exists() else ""


@pytest.mark.slow
def test_on_slurm_the_rows_are_the_sweep_s_own(cluster, swept, tmp_path):
    folder, flags = swept
    done = run_script("sweep.py", *flags, tmp_path / "out", "--slurm", "--time=10", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses_of(tmp_path / "out") == losses_of(folder)

    done = run_script("sweep.py", *flags, tmp_path / "hand", "--print_commands")
    (tmp_path / "jobs.txt").write_text(done.stdout)
    output = f"--output={tmp_path}/%a.log"
    script = ["docs/slurm_array.sh", tmp_path / "jobs.txt"]
    subprocess.run(["sbatch", "--wait", "--array=1-4", output, *script], cwd=jobs.ROOT, check=True, timeout=600)
    assert "val loss" in (tmp_path / "1.log").read_text()
    assert run_script("sweep.py", *flags, tmp_path / "hand", "--collect", tmp_path / "hand" / "cells").returncode == 0
    assert losses_of(tmp_path / "hand") == losses_of(folder)


@pytest.mark.slow
def test_on_slurm_jobs_fail_are_cancelled_and_requeued(cluster, toy_data, tmp_path):
    """Of four jobs one ends by itself, one can't write, one is cancelled and one requeued."""
    flags = ["--flop_budgets", "4e9", "--n_embds", 8, 12, 16, 20, "--n_layers", 1, 1, 1, 1, *SIZES[6:]]
    flags += ["--data_dir", toy_data, "--out_dir"]
    assert run_script("sweep.py", *flags, tmp_path / "own", timeout=600).returncode == 0
    fails, cancelled, requeued, runs = sorted(losses_of(tmp_path / "own"))
    out = tmp_path / "out"
    (out / "cells").mkdir(parents=True)
    (out / "cells" / fails).write_text("a file in the place of the run's folder")
    assert run_script("sweep.py", *flags, out, "--slurm", "--time=10", "--no-wait").returncode == 0

    # cut two of them while they train
    cuts = {cancelled: ["scancel"], requeued: ["scontrol", "requeue"]}

    def both_cut() -> bool:
        for run_id in [run_id for run_id in cuts if "step 0" in log_of(out, run_id)]:
            subprocess.run([*cuts.pop(run_id), task_of(out, run_id)], check=True)
        return not cuts

    wait_for(both_cut, seconds=300)
    for run_id in (cancelled, requeued):
        wait_for(lambda run_id=run_id: "saved as" in log_of(out, run_id), seconds=60)
    wait_for((out / "cells" / runs / "run.json").exists, seconds=300)
    wait_for(lambda: slurm.states_of([task_of(out, fails)])[task_of(out, fails)] == "FAILED", seconds=300)
    done = run_script("sweep.py", *flags, out, "--collect", out)
    assert done.returncode == 1 and "collected 1 runs" in done.stdout, done.stdout + done.stderr
    assert re.search(
        r"not run \([0-9a-f]{12}, job \d+_\d cancelled, cancelled, cut, with a checkpoint after step \d+", done.stdout
    )
    assert re.search(r"not run \([0-9a-f]{12}, job \d+_\d failed, .*can't be written", done.stdout)
    assert re.search(
        r"not run \([0-9a-f]{12}, job \d+_\d pending, cancelled due to job requeue, cut, with a", done.stdout
    )

    # the same command waits for the requeued one, and submits the other two
    waited = task_of(out, requeued)
    command = [sys.executable, "-u", "sweep.py", *map(str, flags), str(out), "--slurm", "--time=10"]
    with open(tmp_path / "said", "w+") as said:
        again = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=said, stderr=subprocess.STDOUT)
        wait_for(lambda: "in Slurm's queue already" in (tmp_path / "said").read_text(), seconds=300)
        subprocess.run(["scontrol", "update", f"JobId={waited}", "StartTime=now"], check=True)
        assert again.wait(600) == 1
    answer = (tmp_path / "said").read_text()
    assert "1 of 4 cells have no result" in answer and "1 cells are in Slurm's queue already" in answer
    assert task_of(out, requeued) == waited
    assert re.search(rf"{fails} \| job \d+_\d failed: .*can't be written", answer)
    assert all("resuming after step" in log_of(out, run_id) for run_id in (requeued, cancelled))
    (out / "cells" / fails).unlink()
    assert run_script("sweep.py", *flags, out, "--slurm", "--time=10", timeout=600).returncode == 0
    assert losses_of(out) == losses_of(tmp_path / "own")
