"""What a mistake on the command line is answered with: in flags, with advice that helps, and before TensorFlow is loaded."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tfvidgen.layers import augmentation, dcgan
from tfvidgen.models.tgan import TGAN
from tfvidgen.models.vgan import VGAN
from trainers import adversarial, cli, mocogan, navsynth, tgan, vgan

# (trainer, flags, status, what the message says). {name} is a folder of the fixture `folders`.
MISTAKES = [
    ("navsynth", "--size=24", 2, r"--size must be 8, 16, 32, 64, 128, .*Received 24"),
    ("navsynth", "--num_frames=4", 2, r"--negative_radius=5 .*--num_frames=4: use at least 7 .*--triplet_weight=0"),
    ("navsynth", "--positive_radius=9", 2, r"--positive_radius=9 must not exceed --negative_radius=5"),
    (
        "navsynth",
        "--decoded_frames=9",
        2,
        r"--decoded_frames=9 exceeds the --num_frames=8 of a clip: lower it, or use 0",
    ),
    (
        "navsynth",
        "--conditioning=norm --norm=none",
        2,
        r"--conditioning=norm needs --norm=batch.*--conditioning=concat",
    ),
    ("navsynth", "--clip_start=random", 2, r"use --clip_start=first or centre"),
    ("navsynth", "--loss=perceptual --vgg16_weights=no/file", 2, r"--vgg16_weights=no/file does not exist"),
    ("navsynth", "--num_frames=1", 2, r"--num_frames=1, --size=16: raise them, or pass --noevaluate"),
    ("navsynth", "--clips_per_video=some", 2, r"--clips_per_video must be a positive number, or all. Received 'some'"),
    ("navsynth", "--ema_decay=1", 2, r"--ema_decay must be below 1, e.g. 0.999. Received 1.0"),
    ("navsynth", "--num_held_out_cells=1 --trained_per_identity=1", 2, r"give one of them"),
    ("navsynth", "--num_held_out_cells=4", 1, r"--num_held_out_cells=4, .*Hold out fewer"),
    ("navsynth", "--batch_size=9", 1, r"--batch_size=9 exceeds the 4 training videos"),
    ("navsynth", "--dataset=no/folder", 1, r"No dataset or path 'no/folder'"),
    ("navsynth", "--dataset=sprites", 1, r"pass --data_dir"),
    ("navsynth", "--init_from=no/run", 1, r"--init_from: no/run is not a run folder"),
    (
        "navsynth",
        "--dataset={flat} --num_frames=17",
        1,
        r"--num_frames=17 at --stride=1 .*Lower --num_frames or .*--short_clip=loop",
    ),
    ("navsynth", "--dataset={broken}", 1, r"bad.npy: it is truncated.*--skip_bad"),
    (
        "navsynth",
        "--dataset={flat} --mirror=own_action",
        1,
        r"--mirror=own_action .* has none: use --mirror=same_action",
    ),
    ("navsynth", "--dataset={flat} --num_held_out_cells=1", 1, r"Cells need an identity and an action"),
    (
        "mocogan",
        "--num_frames=3",
        2,
        r"needs 4 frames at --size=16 and --temporal_taps=2.*raise it to 4, or use --temporal_taps=1",
    ),
    ("mocogan", "--temporal_taps=4 --noevaluate", 2, r"needs 10 frames .*raise it to 10, or use --temporal_taps=3"),
    (
        "mocogan",
        "--size=8 --noevaluate --image_head=patch",
        2,
        r"--image_head=patch needs .*16 pixels.*--image_head=plain",
    ),
    (
        "mocogan",
        "--num_categories=1",
        2,
        r"--num_categories must be at least 2, or 0 for as many as the data has actions",
    ),
    (
        "mocogan",
        "--augmentation=color",
        2,
        r"--augmentation takes names from colour, translation, cutout.*Did you mean 'colour'",
    ),
    ("vgan", "--num_frames=6", 2, r"--num_frames must be a multiple of 4 at --size=16. Received 6"),
    ("tgan", "--num_frames=6", 2, r"--num_frames must be a power of two, at least 4 at --size=16. Received 6"),
    ("tgan", "--constraint=none", 2, r"--constraint=singular_values or weights, --spectral_norm, --r1_weight above 0"),
]
PROGRAM = """
import contextlib, importlib, io, json, sys
answers = []
for trainer, flags in json.load(sys.stdin):
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        status = importlib.import_module(f"trainers.{trainer}").main(["--preset=smoke", *flags])
    answers.append((status, error.getvalue(), "tensorflow" in sys.modules or "keras" in sys.modules))
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders by what is in them."""
    root = tmp_path_factory.mktemp("data")
    clip = np.zeros((16, 16, 16, 3), np.uint8)
    layouts = {
        "flat": ("a", "b"),
        "classes": ("run/a", "walk/b"),
        "one_class": ("run/a", "run/b"),
        "broken": ("good",),
    }
    for name, files in layouts.items():
        for file in files:
            (root / name / file).parent.mkdir(parents=True, exist_ok=True)
            np.save(root / name / file, clip)
    (root / "broken" / "bad.npy").write_bytes((root / "broken" / "good.npy").read_bytes()[:900])
    return {name: str(root / name) for name in layouts}


@pytest.fixture(scope="module")
def answers(folders, tmp_path_factory):
    """The answers to `MISTAKES`, all from one process: (status, standard error, whether TensorFlow was imported)."""
    commands = [(trainer, flags.format(**folders).split()) for trainer, flags, _, _ in MISTAKES]
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(commands),
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path_factory.mktemp("empty"),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "number", range(len(MISTAKES)), ids=[f"{trainer} {flags}" for trainer, flags, _, _ in MISTAKES]
)
def test_a_mistake_is_answered_before_tensorflow_is_loaded(answers, number):
    trainer, _, expected, message = MISTAKES[number]
    status, error, imported = answers[number]
    assert re.search(message, error, re.DOTALL), error
    assert (
        error.startswith(f"trainers.{trainer}: {'usage' if expected == 2 else 'error'}: ") and "Traceback" not in error
    )
    assert (status, imported) == (expected, False)


# ---------------------------------------------------------------- labels that the data does not have
def build(trainer, folder, *flags):
    config, _ = cli.parse(trainer.Config, trainer.PRESETS, ["--preset=smoke", f"--dataset={folder}", *flags])
    from trainers import runs

    return trainer.build_model(config, runs.load_data(config))


@pytest.mark.parametrize(
    ("folder", "flag", "message"),
    [
        (
            "classes",
            "--static_by=identity",
            r"--static_by=identity needs an identity .*--static_by=video .*ann/walk/a.mp4",
        ),
        ("classes", "--static_by=identity", r"as it has one folder per action only, or with a column `identity`"),
        (
            "flat",
            "--static_by=identity",
            r"gives none: --static_by=video .*\(ann/walk/a.mp4\), or with a column `identity`",
        ),
        (
            "flat",
            "--transient_by=action",
            r"--transient_by=action needs an action .*--transient_by=video .*\(walk/a.mp4\)",
        ),
        ("flat", "--conditioning=norm", r"--conditioning=norm needs an action .*--conditioning=none does without"),
    ],
)
def test_navsynth_says_which_labels_are_missing_and_what_to_do(folders, folder, flag, message):
    with pytest.raises(ValueError, match=message):
        build(navsynth, folders[folder], flag)


@pytest.mark.parametrize(("trainer", "flag"), [(mocogan, "categorical"), (tgan, "conditional")])
def test_one_class_is_no_category(folders, trainer, flag):
    with pytest.raises(
        ValueError, match=f"--{flag} tells actions apart, .*only one, 'run': add a folder .* or use --no{flag}"
    ):
        build(trainer, folders["one_class"], f"--{flag}")
    with pytest.raises(ValueError, match=rf"--{flag} needs an action .*\(walk/a.mp4\), or use --no{flag}"):
        build(trainer, folders["flat"], f"--{flag}")


def test_more_actions_than_categories_are_refused(folders):
    with pytest.raises(ValueError, match="has 3 actions, so --num_categories must be at least 3, or 0 .*Received 2"):
        build(mocogan, "actors", "--num_actions=3", "--num_categories=2")


# ---------------------------------------------------------------- the library's arguments as flags
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`size` must be 8. Received 3.", "--size must be 8. Received 3."),
        ("lower num_frames or stride=2, or temporal_taps.", "lower --num_frames or --stride=2, or --temporal_taps."),
        ("(num_frames=3): raise `temporal_taps`", "(--num_frames=3): raise --temporal_taps"),
        ("num_held_out=3 and `decay`", "--num_held_out_cells=3 and --ema_decay"),
        ("seed: was 0, now 3; ema_decay: was 0.0", "--seed: was 0, now 3; --ema_decay: was 0.0"),
        ("--batch_size=3 of --stride=2", "--batch_size=3 of --stride=2"),
        ("the size of a seed, and its dataset", "the size of a seed, and its dataset"),
        ("runs/batch_size=3/x, a/num_frames, total_steps.npy", "runs/batch_size=3/x, a/num_frames, total_steps.npy"),
        ("call model.generate(seed=3), decode(num_frames)", "call model.generate(seed=3), decode(num_frames)"),
        ("config.json: num_frames must be int", "config.json: num_frames must be int"),
    ],
)
def test_arguments_of_the_library_are_given_as_flags(text, expected):
    assert cli.as_flags(text, mocogan.Config) == expected


def test_a_message_of_the_library_ends_up_in_flags(capsys):
    def run(config, other):
        raise ValueError("`batch_size` and num_frames=3 do not fit.")

    assert cli.main("trainers.x", "", mocogan.Config, {}, run, []) == 1
    assert capsys.readouterr().err == "trainers.x: error: --batch_size and --num_frames=3 do not fit.\n"


# ---------------------------------------------------------------- checks that repeat those of the library
def refused(call, *arguments, **named) -> bool:
    try:
        call(*arguments, **named)
    except ValueError:
        return True
    return False


def test_frames_and_sizes_are_those_that_the_networks_take():
    """The library checks its own arguments; trainers check them earlier, without importing it, and must agree."""
    for size in (4, 8, 16, 24, 32):
        for num_frames in (2, 3, 4, 6, 8, 10, 12, 16):
            shape = {"size": size, "num_frames": num_frames}
            for trainer, model in ((vgan, VGAN), (tgan, TGAN)):
                checked = refused(cli.check, trainer.Config(**shape, evaluate=False))
                assert checked == refused(model, **shape, width=1), (trainer.__name__, shape)


@pytest.mark.parametrize("head", ["plain", "patch"])
def test_temporal_taps_are_those_that_the_discriminator_takes(head):
    for size in (8, 16, 32):
        for taps in (1, 2, 4):

            def build_and_check(num_frames, size=size, taps=taps):
                discriminator = dcgan.VideoDiscriminator(size, 1, head, temporal_taps=taps)
                discriminator.check_length(num_frames)

            for num_frames in (3, 4, 6, 8, 10, 13, 16):
                settings = {"size": size, "num_frames": num_frames, "temporal_taps": taps, "video_head": head}
                checked = refused(cli.check, mocogan.Config(**settings, evaluate=False))
                assert checked == refused(build_and_check, num_frames), settings


def test_the_advice_on_temporal_taps_fits():
    for size in (16, 64):
        for num_frames in range(2, 16):
            config = mocogan.Config(size=size, num_frames=num_frames)
            try:
                cli.check(config)
            except cli.UsageError as error:
                advised = int(re.search(r"use --temporal_taps=(\d+)", str(error))[1])
                cli.check(mocogan.Config(size=size, num_frames=num_frames, temporal_taps=advised))
                assert refused(
                    cli.check, mocogan.Config(size=size, num_frames=num_frames, temporal_taps=advised + 1)
                ), "a larger one fits, too"


def test_the_augmentations_are_those_of_the_library():
    assert adversarial.AUGMENTATIONS == augmentation.AUGMENTATIONS
