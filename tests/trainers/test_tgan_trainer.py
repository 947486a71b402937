"""TGAN from the command line: a whole run, its variants by preset, and data that it cannot learn from."""

import numpy as np
import pytest

from tests.trainers.test_mocogan_trainer import TOOLS, call, check_tools
from tfvidgen.models.tgan import TGAN
from trainers import cli, generate, runs, tgan

pytestmark = pytest.mark.usefixtures("quick_graphs")

ACTORS = ["--dataset=actors", "--num_identities=2", "--num_actions=2"]


@pytest.mark.long
def test_a_conditional_run_trains_and_is_loaded(tmp_path):
    flags = ["--preset=smoke", "--conditional", "--notensorboard", "--noevaluate", f"--run_dir={tmp_path}"]
    status, out, error = call(tgan.main, *flags)
    assert (status, error) == (0, ""), error
    assert "discriminator_loss" in out and "generator_loss" in out
    model, step = runs.load_model(tmp_path)
    assert isinstance(model, TGAN) and (step, model.num_categories) == (4, 2)
    assert model.action_names == tuple(runs.load_data(runs.read_config(tmp_path)).trained.action_names)
    out = ["--num_videos=2", f"--out={tmp_path}"]

    def labelled(labels):
        status, said, error = call(generate.main, f"--run_dir={tmp_path}", f"--labels={labels}", *out)
        return (np.load(tmp_path / "new.npy"), said) if not error else (status, error)

    videos, _ = labelled(f"{model.action_names[1]},0")
    latents = model.sample_latents(2, seed=0, labels=[1, 0])
    assert np.abs(videos - (model.decode(latents).numpy() + 1) * 127.5).max() <= 1
    assert "--labels must lie in 0..1. Received 2" in labelled("2")[1]
    assert "one label for all videos or one for each of --num_videos=2. Received 3" in labelled("0,1,0")[1]
    assert "or names (of" in labelled("no_action")[1]
    for kernel in model.discriminator.kernels:  # clipped every second step
        assert np.linalg.svd(kernel.numpy().reshape(-1, kernel.shape[-1]), compute_uv=False).max() <= 1 + 1e-5


@pytest.mark.parametrize("preset", [name for name in tgan.PRESETS if name != "smoke"])
def test_presets_build_their_model_at_another_size(preset):
    """Everything of a preset but its data and its size."""
    flags = [f"--{name}=4" for name in ("temporal_width", "width", "discriminator_width", "slow_dim", "fast_dim")]
    flags += ["--size=16", "--num_frames=8", "--stride=1", "--precision=float32", *ACTORS]
    config, _ = cli.parse(tgan.Config, tgan.PRESETS, [f"--preset={preset}", *flags])
    fast = ("non_saturating", "none")
    assert (config.adversarial_loss, config.constraint) == {
        "paper_ucf101_weight_clipping": ("wgan", "weights"),
        "paper_ucf101_vanilla": ("non_saturating", "none"),
        "weizmann": fast,
        "shapes": fast,
        "clips": fast,
    }.get(preset, ("wgan", "singular_values"))
    config, _ = cli.parse(tgan.Config, tgan.PRESETS, [f"--preset={preset}", *flags, *TOOLS])
    model = tgan.build_model(config, runs.load_data(config))
    check_tools(model)
    assert model.constraint == config.constraint and model.noise_place == config.noise_place
    largest = max(np.abs(v.numpy()).max() for v in model.image_generator.trainable_variables if "kernel" in v.path)
    assert (largest <= 0.01) == preset.startswith("paper")
    assert model.num_categories == (2 if preset.endswith("conditional") else 0)
    assert type(model.generator_optimizer).__name__ == ("RMSprop" if preset.startswith("paper") else "Adam")


def test_paper_presets_have_the_paper_s_numbers():
    config, _ = cli.parse(tgan.Config, tgan.PRESETS, ["--preset=paper_ucf101", "--dataset=PATH"])
    assert (config.size, config.num_frames, config.batch_size, config.total_steps) == (64, 16, 32, 100_000)
    assert (config.slow_dim, config.fast_dim, config.clip_every_steps) == (100, 100, 5)
    assert (config.generator_learning_rate, config.discriminator_learning_rate) == (5e-5, 5e-5)
    assert (config.temporal_width, config.width, config.discriminator_width) == (512, 32, 64)
    kernels = {name: preset.get("initialisation") for name, preset in tgan.PRESETS.items() if name.startswith("paper")}
    everywhere = {name for name, value in kernels.items() if value == "uniform"}
    assert everywhere == {"paper_golf", "paper_moving_mnist"}
    assert {kernels[name] for name in kernels.keys() - everywhere} == {"uniform_images"}
    vanilla, _ = cli.parse(tgan.Config, tgan.PRESETS, ["--preset=paper_ucf101_vanilla", "--dataset=PATH"])
    assert (vanilla.noise_stddev, vanilla.noise_place) == (0.3, "activations")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size=32", "--num_frames=4"], "--num_frames must be a power of two, at least 8 at --size=32. Received 4"),
        (["--constraint=svd"], "--constraint must be one of"),
    ],
)
def test_bad_settings_end_in_one_readable_line(tmp_path, flags, message):
    status, _, error = call(tgan.main, "--preset=smoke", f"--run_dir={tmp_path}", *flags)
    assert status in (1, 2) and message in error


def test_a_conditional_run_needs_actions(tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    np.save(clips / "a.npy", np.full((8, 16, 16, 3), 9, np.uint8))
    arguments = ["--preset=smoke", "--conditional", "--batch_size=1", f"--dataset={clips}"]
    arguments.append(f"--run_dir={tmp_path / 'run'}")
    status, _, error = call(tgan.main, *arguments)
    assert status == 1 and "needs an action for every video" in error
