"""The preset `clips`: what it chooses for a folder, says, records and takes up again."""

import dataclasses
import json
import re

import numpy as np
import pytest

from trainers import cli, mocogan, navsynth, rjgan, rmocogan, runs, tgan, train, vgan

pytestmark = pytest.mark.usefixtures("quick_graphs")

TRAINERS = {module.__name__.rpartition(".")[2]: module for module in (navsynth, mocogan, rmocogan, rjgan, vgan, tgan)}
TINY = [
    "--size=16",
    "--width=2",
    "--rnn_units=3",
    "--static_dim=2",
    "--transient_dim=2",
    "--motion_dim=2",
    "--batch_size=3",
]


def write(root, names, length=16):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / f"{name}.npy", np.full((length, 16, 16, 3), 7 * number % 256, np.uint8))
    return root


def decided(module, root, *flags):
    config, other = cli.parse(
        module.Config, module.PRESETS, ["--preset=clips", f"--dataset={root}", "--size=16", *flags]
    )
    config, _, said = runs.decided(config, other.from_data)
    train.check_batch(config, runs.load_data(config))
    return config, said


FLAT = [f"clip{i}" for i in range(24)]
CLASSES = [f"{action}/{i}" for action in ("run", "walk") for i in range(12)]
CELLS = [f"{who}/{action}/a" for who in "abcdef" for action in ("bow", "run", "wave", "walk")]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (FLAT, ("video", "video", 0, 16)),
        (FLAT[:5], ("video", "video", 0, 5)),
        (CLASSES, ("video", "action", 0, 16)),
        (CELLS, ("identity", "action", 2, 16)),
        (CELLS[:8], ("identity", "action", 0, 8)),  # too few cells to hold one out
        ([*CELLS, "a/bow/b"], ("identity", "video", 0, 16)),  # two clips of a cell would share all their codes
    ],
)
def test_codes_held_out_and_batch_follow_the_folder(tmp_path, names, expected):
    config, said = decided(navsynth, write(tmp_path, names))
    assert (config.static_by, config.transient_by, config.num_held_out_cells, config.batch_size) == expected
    assert config.total_steps == 1000
    assert f"chosen for {len(names)} clips: " in said and f"--batch_size={expected[3]} --total_steps=1000" in said


def test_steps_grow_with_the_square_root_of_the_clips(tmp_path):
    write(tmp_path, [f"{i}" for i in range(100)], length=64)
    assert decided(navsynth, tmp_path)[0].total_steps == 1200  # 100 clips
    assert decided(navsynth, tmp_path, "--clips_per_video=all")[0].total_steps == 2500  # 400 of 16 frames
    assert decided(navsynth, tmp_path, "--clips_per_video=all", "--num_frames=2")[0].total_steps == 7100  # 3,200
    assert decided(vgan, tmp_path, "--clips_per_video=all")[0].total_steps == 8800
    assert decided(vgan, tmp_path, "--clips_per_video=all", "--num_frames=4")[0].total_steps == 10_000  # the most


def test_short_videos_are_taken_as_they_are(tmp_path):
    write(tmp_path, FLAT[:4], length=6)
    config, _ = decided(navsynth, tmp_path)
    assert (config.num_frames, config.decoded_frames, config.short_clip) == (6, 4, "error")
    write(tmp_path, ["shorter"], length=3)
    assert decided(navsynth, tmp_path)[0].short_clip == "hold"
    config, _ = decided(mocogan, tmp_path)
    assert (config.num_frames, config.short_clip) == (16, "hold")


def test_single_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds single images: name a folder of videos"):
        decided(navsynth, write(tmp_path, FLAT[:3], length=1))


def test_the_split_of_a_table_is_left_alone(tmp_path):
    write(tmp_path, FLAT[:3])
    table = "file,identity,action,split\nclip0.npy,a,x,trained\nclip1.npy,a,x,held_out\nclip2.npy,b,y,trained\n"
    (tmp_path / "labels.csv").write_text(table)
    config, _ = decided(navsynth, tmp_path)
    assert (config.num_held_out_cells, config.batch_size) == (0, 2)


@pytest.mark.parametrize("name", TRAINERS)
def test_every_system_trains_on_any_folder(name, tmp_path):
    """Actions are used by the systems that take them, and are no condition."""
    module, flag = (
        TRAINERS[name],
        {"mocogan": "categorical", "rmocogan": "categorical", "tgan": "conditional"}.get(name),
    )
    batch = 16 if name == "navsynth" else 8
    for folder, names, labelled in (("flat", FLAT, False), ("one", ["run/a", "run/b"], False), ("two", CLASSES, True)):
        config, said = decided(module, write(tmp_path / folder, names))
        assert config.batch_size == min(batch, len(names)) and f"--batch_size={config.batch_size}" in said
        assert not flag or getattr(config, flag) is labelled
        assert config.stride == 1 and config.precision == "auto"
    assert decided(module, tmp_path / "flat", "--batch_size=2", "--total_steps=7")[0].batch_size == 2


def test_it_asks_for_the_folder_and_help_says_the_rules(capsys):
    assert navsynth.main(["--preset=clips"]) == 2
    assert "--preset=clips needs --dataset: <your clips" in capsys.readouterr().err
    assert navsynth.main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "batch_size=(16, or all trained clips if there are fewer)" in text
    assert "total_steps=(1000 for up to 64 clips, beyond by the square root of their number" in text


def test_a_choice_that_contradicts_a_flag_is_refused(tmp_path):
    write(tmp_path, FLAT[:4], length=6)
    with pytest.raises(cli.UsageError, match="--num_frames=6: use at least 7 frames, .* --triplet_weight=0"):
        decided(navsynth, tmp_path, "--triplet_weight=1")


@pytest.mark.long
def test_a_run_records_what_was_chosen_and_goes_on_with_it(tmp_path, capsys):
    """The batch of 3 of the first command is not chosen anew by the second, nor what the folder decided."""
    root, run_dir = write(tmp_path / "clips", CELLS), tmp_path / "run"
    command = ["--preset=clips", f"--dataset={root}", f"--run_dir={run_dir}", *TINY, "--noevaluate", "--notensorboard"]
    command += ["--precision=float32"]
    assert navsynth.main([*command, "--total_steps=2"]) == 0
    out = capsys.readouterr().out
    chosen = "--num_frames=16 --short_clip=error --decoded_frames=4 --static_by=identity --transient_by=action"
    assert f"navsynth: chosen for 24 clips: {chosen} --num_held_out_cells=2\n" in out
    assert "22 trained, 2 held out" in out
    recorded = json.loads((run_dir / "config.json").read_text())["config"]
    assert (recorded["static_by"], recorded["num_held_out_cells"], recorded["total_steps"]) == ("identity", 2, 2)
    command.remove("--batch_size=3")
    assert navsynth.main(command) == 0
    out = capsys.readouterr().out
    assert f"chosen when {run_dir} was begun: {chosen} --num_held_out_cells=2 --batch_size=3 --total_steps=2" in out
    assert json.loads((run_dir / "config.json").read_text())["config"] == recorded
    repeated, other = cli.parse(navsynth.Config, navsynth.PRESETS, [f"--config={run_dir}"], system="navsynth")
    assert not other.from_data and dataclasses.asdict(repeated) == {**recorded, "run_dir": ""}
    write(root, ["g/walk/a"])
    assert navsynth.main(command) == 1
    assert "the data has different pixels or labels" in capsys.readouterr().err


@pytest.mark.long
def test_a_dry_run_shows_what_is_chosen(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = [
        "--preset=clips",
        f"--dataset={write(tmp_path / 'clips', FLAT)}",
        *TINY,
        "--precision=float32",
        "--dry_run",
    ]
    assert navsynth.main(command) == 0
    out = capsys.readouterr().out
    assert re.search("chosen for 24 clips: .* --transient_by=video --num_held_out_cells=0 --total_steps=1000\n", out)
    assert "  total_steps = 1000\n" in out and "run_dir = 'runs/navsynth-clips'" in out
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]
