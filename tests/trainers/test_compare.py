"""Runs side by side: what is read of them, whole, damaged or alive, and how it is shown."""

import csv
import io
import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from trainers import cli, compare

SETTINGS = {
    "dataset": "actors",
    "seed": 0,
    "learning_rate": 0.001,
    "total_steps": 100,
    "run_dir": "x",
    "resume": "auto",
}


def write(path: pathlib.Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def checkpoint(run_dir: pathlib.Path, step: int, shards: int = 1, prefix: str = "") -> None:
    write(run_dir / "checkpoints" / f"{prefix}ckpt-{step}.index", "index")
    for shard in range(shards):
        write(run_dir / "checkpoints" / f"{prefix}ckpt-{step}.data-{shard:05d}-of-{shards:05d}", "data")


def record(metric: str, value: float, loss: float | None, step: int, digest: str = "d") -> str:
    real = {"digest": digest}
    return json.dumps({"metric": metric, "value": value, "loss": loss, "step": step, "protocol": {"real": real}}) + "\n"


def make_run(run_dir: pathlib.Path, system="navsynth", records="", environment=None, steps=(50, 100), **changes):
    """A run as trainers leave it."""
    description = {"system": system, "config": {**SETTINGS, "run_dir": str(run_dir), **changes}}
    if environment:
        description["environment"] = environment
    write(run_dir / "config.json", description)
    for step in steps:
        checkpoint(run_dir, step)
    seconds = {"input": 6.0, "step": 50.0, "rest": 4.0}
    lines = [json.dumps({"step": step, "reconstruction_loss": 1.0, "seconds": seconds}) + "\n" for step in steps]
    write(run_dir / "metrics.jsonl", "".join(lines))
    if records:
        write(run_dir / "evaluation.jsonl", records)
    return run_dir


def shown(capsys, *argv) -> str:
    assert compare.main([str(part) for part in argv]) == 0
    return capsys.readouterr().out


def rows(capsys, *argv) -> list[dict]:
    return json.loads(shown(capsys, *argv, "--format=json"))


@pytest.fixture
def three(tmp_path):
    make_run(tmp_path / "a", records=record("fvd8_16f", 30.0, 30.0, 50) + record("fvd8_16f", 20.0, 20.0, 100))
    make_run(tmp_path / "b", records=record("fvd8_16f", 10.0, 10.0, 50) + record("fvd8_16f", 40.0, 40.0, 100), seed=7)
    make_run(tmp_path / "deeper" / "c", learning_rate=0.01)
    return tmp_path


# ---------------------------------------------------------------- what is read
def test_runs_below_a_folder_with_the_settings_that_differ(capsys, three):
    found = rows(capsys, three)
    assert [pathlib.Path(row["run"]).name for row in found] == ["b", "a", "c"]  # the best first, without a metric last
    assert [row["fvd8_16f"] for row in found] == [10.0, 20.0, None]
    assert [row["fvd8_16f at step"] for row in found] == [50, 100, None]
    assert [row["minutes"] for row in found] == [2.0, 2.0, 2.0]
    assert [(row["steps"], row["total_steps"]) for row in found] == [(100, 100)] * 3
    assert [(row["seed"], row["learning_rate"]) for row in found] == [(7, 0.001), (0, 0.001), (0, 0.01)]
    assert not {"dataset", "run_dir", "resume"} & set(found[0])
    assert all(row["notes"] is None for row in found)
    files = [path for path in (three / "a").rglob("*") if path.is_file()]
    assert found[1]["bytes"] == sum(path.stat().st_size for path in files) > 0


def test_more_is_better_where_the_loss_says_so(capsys, tmp_path):
    for name, value in (("low", 0.2), ("high", 0.9)):
        make_run(tmp_path / name, records=record("prdc8", value, -value, 50) + record("prdc8", 0.1, -0.1, 100))
        write(tmp_path / name / "evaluation.json", {"step": 100, "trained_videos": {"psnr": 30 * value, "ssim": 0.5}})
    assert [row["prdc8"] for row in rows(capsys, tmp_path)] == [0.9, 0.2]
    by_psnr = rows(capsys, tmp_path, "--metrics=trained_videos.psnr,prdc8")
    assert [row["trained_videos.psnr"] for row in by_psnr] == [27.0, 6.0] and by_psnr[0]["prdc8"] == 0.9


def test_numbers_that_rank_no_model_choose_nothing(capsys, tmp_path):
    make_run(tmp_path / "a", records=record("lpips8", 0.5, None, 100) + record("fvd8", float("nan"), None, 100))
    write(tmp_path / "a" / "evaluation.json", {"step": 100, "real_videos": {"psnr": 99.0}, "new_videos": {"fcs": 1.0}})
    assert compare.read_run(tmp_path / "a").metrics == {}


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("name", "r2 r10 r1x"),
        ("steps", "r10 r2 r1x"),
        ("minutes", "r10 r2 r1x"),
        ("disk", "r1x r10 r2"),
        ("date", "r1x r10 r2"),
    ],
)
def test_orders(capsys, tmp_path, order, expected):
    make_run(tmp_path / "r10", steps=(10, 30), environment={"date": "2026-05-02T10:00:00+00:00"})
    make_run(tmp_path / "r2", steps=(20,))
    make_run(tmp_path / "r1x", steps=(), environment={"date": "2026-05-01T10:00:00+00:00"})
    write(tmp_path / "r1x" / "export" / "large", "x" * 5000)
    found = [pathlib.Path(row["run"]).name for row in rows(capsys, tmp_path, f"--sort={order}")]
    assert sorted(found) == sorted(expected.split())
    if order == "name":
        assert found == ["r1x", "r2", "r10"]  # numbers as numbers
    else:
        assert found == expected.split()


def test_runs_are_found_once_and_their_own_folders_are_not_searched(capsys, three):
    make_run(three / "a" / "best")
    make_run(three / "1" / "2" / "3" / "4" / "5")  # too deep
    make_run(three / ".hidden")
    write(three / "notes.txt", "not a run")
    arguments = [three, three / "a", three / "notes.txt", f"{three}/deeper/../a"]
    assert [pathlib.Path(row["run"]).name for row in rows(capsys, *arguments)] == ["b", "a", "c"]
    assert len(rows(capsys, three / "a" / "best")) == 1  # unless it is named


def test_where_and_when_a_run_was_trained(capsys, tmp_path):
    processor = {"name": "A processor", "cores": 2}
    make_run(tmp_path / "a", environment={"date": "2026-05-02T10:00:00+00:00", "processor": processor, "host": "h"})
    make_run(tmp_path / "b", environment={"processor": "another"})
    found = rows(capsys, tmp_path, "--sort=name")
    assert [row["processor"] for row in found] == ["A processor", "another"]
    assert [row["date"] for row in found] == ["2026-05-02T10:00:00+00:00", None]
    text = shown(capsys, tmp_path)
    assert "2026-05-02 10:00" in text and "A processor" in text


def test_settings_of_one_system_only_are_no_difference(capsys, tmp_path):
    make_run(tmp_path / "a", seed=1, only_navsynth=3)
    make_run(tmp_path / "b", system="vgan", seed=2, only_vgan=4)
    found = rows(capsys, tmp_path)
    assert "seed" in found[0] and not {"only_navsynth", "only_vgan"} & set(found[0])
    assert "system" in shown(capsys, tmp_path)


# ---------------------------------------------------------------- damaged and alive
@pytest.mark.parametrize(
    ("damage", "note"),
    [
        (lambda run: (run / "config.json").unlink(), "config.json is missing"),
        (lambda run: write(run / "config.json", ""), "config.json cannot be read (empty or not JSON)"),
        (lambda run: write(run / "config.json", "null"), "config.json cannot be read (not a JSON object)"),
        (lambda run: write(run / "config.json", "{}"), "config.json has no system or settings"),
        (lambda run: write(run / "config.json", "[" * 100000), "config.json cannot be read"),
        (lambda run: (run / "config.json").write_bytes(b"\xff\xfe{"), "config.json cannot be read (not UTF-8)"),
        (lambda run: write(run / "evaluation.json", '{"step":'), "evaluation.json cannot be read"),
        (lambda run: write(run / "evaluation.json", {"trained_videos": 3, "protocol": 1, "step": "x"}), ""),
        (
            lambda run: write(
                run / "evaluation.jsonl", '{"metric": 3}\n{"metric": "fvd", "value": "inf", "loss": 1}\n'
            ),
            "",
        ),
        (lambda run: write(run / "evaluation.jsonl", "nonsense\n[1]\n"), "evaluation.jsonl: 2 lines cannot be read"),
        (
            lambda run: (run / "metrics.jsonl").write_bytes(b'\xff\n{"step": 3}\n'),
            "metrics.jsonl: 1 line cannot be read",
        ),
        (lambda run: write(run / "metrics.jsonl", '{"step": true, "seconds": {"step": "long"}}\n'), ""),
        (lambda run: (run / "checkpoints" / "ckpt-100.index").unlink(), "ckpt-100 is incomplete"),
        (lambda run: next((run / "checkpoints").glob("ckpt-100.data*")).unlink(), "ckpt-100 is incomplete"),
        (lambda run: checkpoint(run, 150, prefix="damaged-"), "damaged and set aside: ckpt-150"),
        (lambda run: write(run / "bad_step.json", "[]"), "bad_step.json: a step went wrong"),
        (lambda run: write(run / "lock", ""), "lock cannot be read"),
    ],
)
def test_a_damaged_run_has_a_row_that_says_what_is_wrong(capsys, tmp_path, damage, note):
    make_run(tmp_path / "good")
    damage(make_run(tmp_path / "hurt"))
    good, hurt = rows(capsys, tmp_path, "--sort=name")
    assert good["notes"] is None and note in (hurt["notes"] or "") and bool(hurt["notes"]) == bool(note)
    text = shown(capsys, tmp_path)
    assert f"hurt: {note}" in text if note else "notes" not in text


def test_the_newest_whole_checkpoint_says_how_far_a_run_is(tmp_path):
    run = make_run(tmp_path / "a")
    checkpoint(run, 1200, shards=3)
    assert compare.read_run(run).step == 1200
    (run / "checkpoints" / "ckpt-1200.data-00001-of-00003").unlink()
    assert compare.read_run(run).step == 100
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    assert compare.read_run(run).step == 100  # of metrics.jsonl


def test_a_line_that_is_being_written_is_passed_over(tmp_path):
    run = make_run(tmp_path / "a")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 150, "recon')
    assert compare.read_run(run).notes == [] and compare.read_run(run).minutes == 2.0


def test_who_holds_a_run(tmp_path):
    run = make_run(tmp_path / "a")
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    for pid, host, note in (
        (os.getpid(), socket.gethostname(), f"running: process {os.getpid()}"),
        (done.pid, socket.gethostname(), f"killed: process {done.pid}; the same command resumes it"),
        (1, "another-host", "running or killed: process 1 on another-host"),
    ):
        write(run / "lock", {"pid": pid, "host": host, "since": "now"})
        assert compare.read_run(run).notes == [note]
    assert (run / "lock").exists()


def test_runs_that_have_not_begun_or_measured_anything(capsys, tmp_path):
    make_run(tmp_path / "a", steps=())
    (tmp_path / "a" / "metrics.jsonl").unlink()
    (tmp_path / "b" / "checkpoints").mkdir(parents=True)
    text = shown(capsys, tmp_path)
    assert "?/100" in text and "?/?" in text and "b: config.json is missing" in text


# ---------------------------------------------------------------- how it is shown
@pytest.mark.parametrize("width", [60, 100, 200])
def test_a_table_is_aligned_and_fits(capsys, tmp_path, width):
    for i in range(12):
        settings = {f"a_setting_number_{k}": i * k for k in range(1, 9)}
        make_run(tmp_path / f"run-{i}", dataset=f"/data/{'long/' * 20}set-{i}", **settings)
    text = shown(capsys, tmp_path, f"--width={width}")
    assert max(map(len, text.splitlines()[1:])) <= width  # above it stands the folder, to be copied whole
    for i in range(12):
        assert f"run-{i} " in text and f"/set-{i}" in text  # of a long path the end is kept
    for k in range(1, 9):
        assert f"a_setting_number_{k}" in text
    head = next(line for line in text.splitlines() if line.startswith("run "))
    end = head.index("steps") + len("steps")
    assert all(
        line[:end].endswith("100/100") for line in text.splitlines() if line.startswith("run-1 ") and "100/" in line
    )


def test_many_settings_of_few_runs_are_rows(capsys, tmp_path):
    for i in range(2):
        make_run(tmp_path / f"run-{i}", **{f"a_setting_number_{k}": i for k in range(20)})
    lines = shown(capsys, tmp_path, "--width=80").splitlines()
    below = lines[lines.index("settings that differ:") + 1 :]
    assert below[0].split() == ["run-0", "run-1"]
    assert [line.split() for line in below[1:]] == [[f"a_setting_number_{k}", "0", "1"] for k in range(20)]


def test_metrics_of_different_videos_are_not_comparable(capsys, tmp_path):
    for name, digest in (("a", "d1"), ("b", "d1")):
        make_run(tmp_path / name, records=record("fvd8", 1.0, 1.0, 100, digest))
    assert "cannot be compared" not in shown(capsys, tmp_path)
    make_run(tmp_path / "c", records=record("fvd8", 1.0, 1.0, 100, "d2"))
    assert "fvd8 was measured against different real videos" in shown(capsys, tmp_path)


def test_csv_is_read_back(capsys, three):
    text = shown(capsys, three, "--format=csv", "--sort=name")
    found = list(csv.DictReader(io.StringIO(text)))
    assert [(row["fvd8_16f"], row["seed"], row["system"]) for row in found] == [
        ("20.0", "0", "navsynth"),
        ("10.0", "7", "navsynth"),
        ("", "0", "navsynth"),
    ]


def test_metrics_are_listed(capsys, three):
    assert shown(capsys, three, "--metrics=list") == "fvd8_16f: 2 of 3 runs\n"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "Name run folders, or folders that hold runs"),
        (["{}/nowhere"], 1, "nowhere does not exist: name run folders"),
        (["{}/empty"], 1, "empty, down to 4 levels: a run folder holds config.json"),
        (["{}", "--metrics=fvd8_16"], 2, "No run has the metric 'fvd8_16'. Did you mean 'fvd8_16f'?"),
        (["{}", "--sort=metrics"], 2, "--sort must be one of metric, name"),
        (["{}", "--formt=csv"], 2, "Unknown flag --formt. Did you mean --format?"),
    ],
)
def test_what_cannot_be_compared(capsys, three, arguments, status, message):
    (three / "empty").mkdir()
    assert compare.main([part.format(three) for part in arguments]) == status
    assert message in capsys.readouterr().err


def test_other_programs_take_no_arguments_and_help_names_these(capsys):
    with pytest.raises(cli.UsageError, match="Unexpected argument 'runs/'"):
        cli.parse(compare.Config, {}, ["runs/"])
    assert "python -m trainers.compare RUNS... [--flag=value ...]" in shown(capsys, "--help")


def test_tensorflow_is_not_started(three):
    code = f"""
import sys
from trainers import compare
assert compare.main([{str(three)!r}]) == 0
assert not {{"tensorflow", "keras", "numpy"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
