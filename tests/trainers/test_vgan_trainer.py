"""VGAN from the command line: a whole run, its conditional variant, the presets, and data that it cannot learn from."""

import json

import numpy as np
import pytest

from tests.trainers.test_mocogan_trainer import TOOLS, call, check_tools
from trainers import cli, generate, runs, vgan

pytestmark = pytest.mark.usefixtures("quick_graphs")


@pytest.mark.long
def test_a_run_trains_measures_and_generates(tmp_path):
    flags = [
        "--preset=smoke",
        "--conditional",
        "--num_remembered=5",
        "--notensorboard",
        f"--run_dir={tmp_path / 'run'}",
    ]
    status, out, error = call(vgan.main, *flags)
    assert (status, error) == (0, ""), error
    for loss in ("discriminator_loss", "generator_loss", "mask_loss", "first_frame_loss"):
        assert loss in out
    measured = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert measured["step"] == 4 and "trained_videos" not in measured  # clips begin anywhere
    assert (tmp_path / "run" / "samples" / "step_0000004.png").is_file()
    status, _, error = call(generate.main, f"--run_dir={tmp_path / 'run'}", "--num_videos=3", f"--out={tmp_path}")
    assert (status, error) == (0, "")
    assert np.load(tmp_path / "new.npy").shape == (3, 8, 16, 16, 3)

    np.save(tmp_path / "own.npy", np.arange(9 * 16 * 16 * 3, dtype=np.int64).astype(np.uint8).reshape(9, 16, 16, 3))
    made = [f"--run_dir={tmp_path / 'run'}", f"--clips={tmp_path / 'own.npy'}", f"--out={tmp_path}"]
    status, _, error = call(generate.main, *made, "--mode=reconstruct")
    assert (status, error) == (0, "")
    status, _, error = call(generate.main, *made, "--mode=swap")
    assert status == 1 and "at least two clips and a system with motion latents. Received 1 clips" in error
    status, _, error = call(generate.main, *made[::2], "--mode=reconstruct")
    assert status == 2 and "--clips is missing" in error
    status, _, error = call(generate.main, made[0], "--labels=0")
    assert status == 1 and "unconditional: leave out --labels" in error

    model, step = runs.load_model(tmp_path / "run")
    clip = np.load(tmp_path / "own.npy")[None, :8]
    expected = (model.reconstruct({"video": clip}).numpy() + 1) * 127.5
    assert np.abs(np.load(tmp_path / "reconstruct.npy") - expected).max() <= 1
    assert (type(model).__name__, step, model.num_remembered) == ("ConditionalVGAN", 4, 5)
    videos = runs.load_data(runs.read_config(tmp_path / "run")).all
    known = {videos.video(i)[t].tobytes() for i in range(len(videos)) for t in range(8)}
    assert all(frame.tobytes() in known for frame in model.first_frames.numpy())


@pytest.mark.parametrize("preset", [name for name in vgan.PRESETS if name != "smoke"])
def test_presets_build_their_model_at_another_size(preset):
    """Everything of a preset but its data and its size."""
    flags = ["--dataset=actors", "--num_identities=2", "--num_actions=2", "--size=16", "--num_frames=8", "--width=2"]
    config, _ = cli.parse(
        vgan.Config, vgan.PRESETS, [f"--preset={preset}", *flags, *TOOLS, "--stride=1", "--precision=float32"]
    )
    model = vgan.build_model(config, runs.load_data(config))
    check_tools(model)
    assert model.conditional == preset.endswith("first_frame")
    assert model.generate(1).shape == (1, 8, 16, 16, 3)


def test_paper_presets_have_the_paper_s_numbers():
    config, _ = cli.parse(vgan.Config, vgan.PRESETS, ["--preset=paper_golf", "--dataset=PATH"])
    assert (config.size, config.num_frames, config.batch_size, config.latent_dim, config.width) == (64, 32, 64, 100, 64)
    assert (config.generator_learning_rate, config.beta_1, config.mask_weight) == (2e-4, 0.5, 0.1)
    assert (config.clip_start, config.short_clip, config.adversarial_loss) == ("first", "hold", "non_saturating")
    config, _ = cli.parse(vgan.Config, vgan.PRESETS, ["--preset=paper_golf_first_frame", "--dataset=PATH"])
    assert (config.conditional, config.batch_size, config.mask_weight, config.first_frame_weight) == (True, 32, 0, 10)
    assert config.total_steps == 1_886_800  # 100 epochs


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--adversarial_loss=wasserstein"], "--adversarial_loss must be one of"),
        (["--discriminator_learning_rate=1e30"], "generator_loss became nan"),
    ],
)
def test_bad_settings_end_in_one_readable_line(tmp_path, flags, message):
    arguments = ["--preset=smoke", "--noevaluate", "--notensorboard", f"--run_dir={tmp_path}", *flags]
    status, _, error = call(vgan.main, *arguments)
    assert status in (1, 2) and message in error


def test_single_images_are_refused(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        np.save(images / f"{i}.npy", np.full((1, 16, 16, 3), 40 * i, np.uint8))
    arguments = ["--preset=smoke", f"--dataset={images}", "--short_clip=hold", f"--run_dir={tmp_path / 'run'}"]
    status, _, error = call(vgan.main, *arguments)
    assert status == 1 and "holds single images" in error
