"""Every script on a disk without room, on one that can't be written, and with a limit on the size of files.

One line with the path and a way out, and status 2; the record first; nothing half-written; and the way out works.
"""

import csv
import json
import os
import shutil
import subprocess

import pytest
from helpers import script_server
from safetensors import safe_open

from isoflop.train import checkpoint

pytestmark = pytest.mark.slow

KIB = 1024  # size of the disk
MODEL = "--n_layer 1 --n_embd 8 --block_size 16"
RUN = f"{MODEL} --max_iters 4 --batch_size 1 --val_tokens 64 --device cpu"
JOBS = {  # @ is the disk, good/ the inputs, > the file that stdout goes to
    "model": f"model {MODEL} --plot_flops @/flops.png",
    "plan": f"plan {MODEL} --tokens 1e9 > @/plan.txt",
    "fit": "fit good/runs.csv --bootstrap 0 --out_dir @/fit",
    "data": "data --source good/text.jsonl --tokenizer byte --out_dir @/data",
    "train": f"train --data_dir good/data --out_dir @/run --ckpt_every 1 {RUN}",
    "resume": f"train --data_dir good/data --out_dir @/run --ckpt_every 1 --resume {RUN}",
    "sweep": "sweep --data_dir good/data --flop_budgets 1e6 2e6 --n_embds 8 16 --block_size 16 --val_tokens 64 "
    "--device cpu --allow_few_steps --out_dir @/sweep",
    "simulate": "sweep --simulate hoffmann --flop_budgets 1e18 1e19 --sizes 3 --out_dir @/sweep",
    "sample": "sample --ckpt good/ckpt --max_new_tokens 40 > @/text.txt",
    "eval": "eval --ckpt good/ckpt --data_dir good/data --val_tokens 64 --device cpu --out @/scores.jsonl",
    "export": "export --ckpt good/ckpt --out @/hf",
    "import": "export --from_hf good/hf --out @/ours",
}
WAYS_OUT = ("make room and run the same command again", "name another", "(ulimit -f) and run the same command again")
WAYS_OUT += ("name a path that can be written",)


@pytest.fixture(scope="module")
def server():
    with script_server(("model", "plan", "fit", "data", "train", "sweep", "sample", "eval", "export")) as call:
        yield call


@pytest.fixture(scope="module")
def good(server, tmp_path_factory):
    """The folder of inputs."""
    folder = tmp_path_factory.mktemp("inputs")
    texts = [json.dumps({"text": f"document {i} of the text " * (1 + i % 7)}) for i in range(60)]
    (folder / "text.jsonl").write_text("\n".join(texts) + "\n")
    lines = ["params,tokens,loss"]
    for c in (1e15, 1e16, 1e17):
        for n in (1e6, 2e6, 4e6, 8e6, 1.6e7):
            n *= (c / 1e15) ** 0.5
            lines.append(f"{n},{c / 6 / n},{1.7 + 400 / n**0.34 + 410 / (c / 6 / n) ** 0.28}")
    (folder / "runs.csv").write_text("\n".join(lines) + "\n")
    made = [
        ("data", "--source text.jsonl --tokenizer byte --out_dir data --val_fraction 0.3"),
        ("train", f"--data_dir data --out_dir ckpt --ckpt_every 2 {RUN}"),
        ("export", "--ckpt ckpt --out hf"),
    ]
    for script, flags in made:
        answer = server(script, flags.split(), folder)
        assert answer["status"] == 0, answer["err"]
    interrupted = folder / "run"  # a run that a kill ended after its first checkpoint
    shutil.copytree(folder / "ckpt" / "checkpoints" / "step_00000002", interrupted / "checkpoints" / "step_00000002")
    return folder


@pytest.fixture
def disk(tmp_path):
    """disk(room) makes a file system with so many KiB left, disk("ro") one that can't be written, disk(None) room."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")

    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    mount(f"size={KIB}k")
    made = folder

    def change(room):
        (folder / "filler").unlink(missing_ok=True)
        if room == "ro":
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        elif room is None:
            subprocess.run(["mount", "-o", f"remount,rw,size={20 * KIB}k", str(folder)], check=True)
        else:
            free = os.statvfs(folder)
            (folder / "filler").write_bytes(b"x" * (free.f_bavail * free.f_bsize - room * 1024))
        return made

    yield change
    subprocess.run(["umount", str(folder)], check=True)


# ----- what must hold -----


def run(server, job: str, folder, good, **more) -> dict:
    """The answer to a job of JOBS, started in the folder of inputs' parent."""
    words = JOBS[job].replace("@", str(folder)).replace("good/", f"{good}/").split()
    if ">" in words:
        more["stdout"] = words[-1]
        words = words[: words.index(">")]
    return server(words[0], words[1:], good, **more)


def check_answer(job: str, answer: dict, folder):
    """One line with a path and a way out, status 2; train.py may say 1, where only the weights are missing."""
    assert not answer["hung"] and "Traceback" not in answer["err"], answer
    if answer["status"] == 1:
        assert job in ("train", "resume") and (folder / "run" / "run.json").exists(), answer
        assert "model.safetensors could not be written" in answer["out"] and "make room" in answer["out"]
        return
    assert answer["status"] == 2, answer
    lines = [line for line in answer["err"].splitlines() if ": error: " in line]
    assert len(lines) == 1 and lines[0] == answer["err"].splitlines()[-1], answer["err"]
    assert str(folder) in lines[0] or "standard output: " in lines[0], lines[0]
    assert any(way in lines[0] for way in WAYS_OUT) and ".part" not in lines[0].replace(".partial", ""), lines[0]


def check_files(job: str, folder):
    """Every file that is there is whole, and a folder that other scripts would take is complete."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("filler", ".lock", "lock")]
    for path in paths:
        raw = path.read_bytes()
        assert not path.name.endswith(".part"), f"{path} is left"
        assert raw or path.suffix == ".txt", f"{path} is empty"
        if path.suffix == ".json":
            json.loads(raw)
        elif path.suffix == ".jsonl":
            assert [json.loads(line) for line in raw.decode().splitlines()] and raw.endswith(b"\n")
        elif path.suffix == ".csv":
            assert raw.endswith(b"\n") and len({len(row) for row in csv.reader(raw.decode().splitlines())}) == 1
        elif path.suffix == ".png":
            assert raw.endswith(b"IEND\xaeB`\x82"), f"{path} is half a picture"
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as f:
                assert list(f.keys())
    names = {str(path.relative_to(folder)) for path in paths}
    assert not any(name.startswith(("hf/", "ours/", "data/")) for name in names), "half a folder"
    if any(name.startswith("run/") and "checkpoints" not in name for name in names):
        assert "run/run.json" in names, "the record is first"
    for state in folder.glob("run/checkpoints/*"):
        checkpoint.check_files(state)
    if job == "resume":
        assert "run/checkpoints/step_00000002/state.json" in names, "the last good checkpoint stays"


@pytest.mark.parametrize("job", JOBS)
def test_no_room(job, server, good, disk):
    """From no room at all to a little; then there is room, and the same command succeeds."""
    failures = 0
    for room in (0, 8, 24):
        folder = disk(None)
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if job == "resume":
            shutil.copytree(good / "run", folder / "run")
        disk(room)
        answer = run(server, job, folder, good)
        if answer["status"] == 0:
            break
        failures += 1
        check_answer(job, answer, folder)
        check_files(job, folder)
        disk(None)
        answer = run(server, job, folder, good)
        assert answer["status"] == 0 or "all three methods were refused" in answer["err"], answer
    assert failures > 0


@pytest.mark.parametrize("job", [job for job in JOBS if " > " not in JOBS[job]])
def test_a_disk_that_can_not_be_written(job, server, good, disk):
    """Said at once, before anything is computed."""
    folder = disk(None)
    if job == "resume":
        shutil.copytree(good / "run", folder / "run")
    before = sorted(folder.rglob("*"))
    answer = run(server, job, disk("ro"), good)
    check_answer(job, answer, folder)
    assert "Read-only file system" in answer["err"] and sorted(folder.rglob("*")) == before
    computed = ("params", "step 0", "nats/token", "loss ")
    assert job == "model" or not any(word in answer["out"] for word in computed), answer["out"]


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("most", [1000, 10_000])
def test_a_limit_on_the_size_of_files(job, most, server, good, tmp_path):
    """As on a full disk, and where mounting is not allowed."""
    if job == "resume":
        shutil.copytree(good / "run", tmp_path / "run")
    answer = run(server, job, tmp_path, good, file_bytes=most)
    if answer["status"] == 0:
        assert job in ("plan", "sample", "eval"), "it can't have written that"
        return
    check_answer(job, answer, tmp_path)
    check_files(job, tmp_path)
    answer = run(server, job, tmp_path, good)
    assert answer["status"] == 0 or "all three methods were refused" in answer["err"], answer
