"""MoCoGAN, RMoCoGAN and RJGAN from the command line: runs, presets, loose images, and data that they cannot learn from."""

import contextlib
import dataclasses
import io
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tfvidgen import data
from trainers import cli, generate, images, init_from, mocogan, rjgan, rmocogan, runs, train
from trainers.engine import checkpoints, loop

pytestmark = pytest.mark.usefixtures("quick_graphs")

TRAINERS = {"mocogan": mocogan, "rmocogan": rmocogan, "rjgan": rjgan}
QUIET = ["--notensorboard", "--noevaluate"]


def call(main, *argv) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of a program."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = main(list(argv))
    return status, out.getvalue(), error.getvalue()


def parsed(trainer, *flags):
    return cli.parse(trainer.Config, trainer.PRESETS, flags)[0]


# ---------------------------------------------------------------- runs
@pytest.mark.long
def test_a_run_trains_samples_and_generates_longer_videos(tmp_path):
    run_dir = tmp_path / "run"
    status, out, error = call(mocogan.main, "--preset=smoke", *QUIET, f"--run_dir={run_dir}")
    assert (status, error) == (0, ""), error
    for loss in ("image_discriminator_loss", "video_discriminator_loss", "generator_loss", "real_category_loss"):
        assert loss in out
    assert (run_dir / "samples" / "step_0000004.png").is_file() and (run_dir / "samples" / "new.gif").is_file()
    status, _, error = call(generate.main, f"--run_dir={run_dir}", "--num_videos=3", f"--out={tmp_path}")
    assert (status, error) == (0, "")
    assert np.load(tmp_path / "new.npy").shape == (3, 8, 16, 16, 3)
    status, _, error = call(
        generate.main, f"--run_dir={run_dir}", "--num_videos=2", "--num_frames=11", f"--out={tmp_path}"
    )
    assert (status, error) == (0, "") and np.load(tmp_path / "new.npy").shape == (2, 11, 16, 16, 3)
    model, step = runs.load_model(run_dir)
    assert step == 4 and model.num_categories == 2
    assert model.generate(1, num_frames=11).shape == (1, 11, 16, 16, 3)


def begun(config):
    """A model of RJGAN that begins with another one, as `--init_from` does it."""
    run_data = runs.load_data(config)
    model = rjgan.build_model(config, run_data)
    init_from.begin(config, model, run_data)
    return model


@pytest.mark.long
def test_images_then_clips_begin_with_the_networks_of_the_images(tmp_path):
    flags = ["--preset=smoke", *QUIET, "--total_steps=2"]
    status, out, error = call(rjgan.main, *flags, "--num_frames=1", f"--run_dir={tmp_path / 'images'}")
    assert (status, error) == (0, ""), error
    assert "summary_generator_loss" in out and "video_discriminator_loss" not in out
    trained, _ = runs.load_model(tmp_path / "images")
    config = parsed(rjgan, *flags, f"--init_from={tmp_path / 'images'}")
    model = begun(config)
    fresh = rjgan.build_model(parsed(rjgan, *flags), runs.load_data(config))
    for network in ("generator", "image_discriminator"):
        for ours, theirs in zip(getattr(model, network).weights, getattr(trained, network).weights, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for ours, other in zip(model.video_discriminator.weights, fresh.video_discriminator.weights, strict=True):
        np.testing.assert_array_equal(ours, other)
    with pytest.raises(ValueError, match="do not fit: .*Use the same widths"):
        wider = parsed(rjgan, *flags, f"--init_from={tmp_path / 'images'}", "--width=5")
        begun(wider)


@pytest.mark.long
def test_clips_then_images_which_go_on_without_the_clips(tmp_path):
    flags = ["--preset=smoke", *QUIET, "--total_steps=1"]
    config = parsed(rjgan, *flags)
    run_data = runs.load_data(config)
    clips = rjgan.build_model(config, run_data)
    runs.start(dataclasses.replace(config, run_dir=str(tmp_path / "clips")), "rjgan", clips, run_data)
    loop.run(clips, _dataset(config, run_data), tmp_path / "clips", 1, report=lambda line: None)
    flags += ["--num_frames=1", f"--init_from={tmp_path / 'clips'}", f"--run_dir={tmp_path / 'images'}"]
    config = parsed(rjgan, *flags)
    model = begun(config)
    np.testing.assert_array_equal(model.generate_images(2, seed=1), clips.generate_images(2, seed=1))

    shutil.rmtree(tmp_path / "clips")
    status, _, error = call(rjgan.main, *flags)
    assert status == 1 and f"{tmp_path / 'clips'} is not a run folder" in error
    runs.start(config, "rjgan", model, runs.load_data(config))
    state = {"step": tf.Variable(1, dtype=tf.int64), **checkpoints.model_state(model)}
    checkpoints.Checkpoints(state, tmp_path / "images").save(1)
    status, out, error = call(rjgan.main, *flags, "--resume=must")
    assert (status, error) == (0, "") and "already trained for 1 steps" in out


def _dataset(config, run_data):
    return lambda start: data.make_dataset(
        run_data.trained, config.batch_size, config.num_frames, clip_start="random", start_step=start
    )


# ---------------------------------------------------------------- loose images
def test_half_of_the_videos_become_loose_images():
    config = parsed(rjgan, "--preset=smoke", "--exploded_share=0.5", "--num_identities=3", "--num_actions=2")
    run_data = runs.load_data(config)
    assert len(run_data.trained) == 3 and run_data.images.shape == (3 * 8, 16, 16, 3)
    taken = set(range(6)) - {i for i, trained in enumerate(run_data.is_trained) if trained}
    expected = np.concatenate([run_data.all.video(i) for i in sorted(taken)])
    np.testing.assert_array_equal(run_data.images, expected)


def test_frames_of_a_further_source_become_loose_images(tmp_path):
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", np.full((3, 16, 16, 3), 100 * i, np.uint8))
    config = parsed(rjgan, "--preset=smoke", f"--image_dataset={tmp_path}", "--images_per_clip=4")
    run_data = runs.load_data(config)
    assert run_data.images.shape == (6, 16, 16, 3)
    dataset = images.add_images(_dataset(config, run_data)(7), run_data.images, 4, config.seed)
    first, again = (next(iter(dataset))["image"].numpy() for _ in range(2))
    later = next(iter(images.add_images(_dataset(config, run_data)(8), run_data.images, 4, config.seed)))["image"]
    assert first.shape == (2, 4, 16, 16, 3)
    np.testing.assert_array_equal(first, again)  # a function of (seed, step)
    assert np.abs(first.astype(int) - later.numpy()).max() > 0
    assert set(first[..., 0, 0, 0].ravel()) == {0, 100}


@pytest.mark.long
def test_clips_and_loose_images_train_together(tmp_path):
    flags = ["--preset=smoke", *QUIET, "--total_steps=1", "--exploded_share=0.5", f"--run_dir={tmp_path}"]
    status, _, error = call(rjgan.main, *flags)
    assert (status, error) == (0, ""), error


def test_independent_frames_are_all_frames_of_the_trained_videos():
    flags = ["--preset=smoke", "--independent_frames", "--frames_per_clip=3", "--num_identities=3"]
    config = parsed(mocogan, *flags, "--num_held_out_cells=1", "--mirror=same_action")
    run_data = runs.load_data(config)
    frames = np.concatenate([run_data.all.video(index) for index in np.flatnonzero(run_data.is_trained)])
    np.testing.assert_array_equal(run_data.images, np.concatenate([frames, frames[:, :, ::-1]]))
    assert runs.load_data(parsed(mocogan, "--preset=smoke")).images is None
    batch = next(iter(train._dataset_fn(config, run_data)(0)))
    assert batch["image"].shape == (2, 3, 16, 16, 3)
    assert mocogan.build_model(config, run_data).independent_frames


@pytest.mark.parametrize("share", [0.1, 0.95])
def test_a_share_that_leaves_nothing_is_refused(share):
    config = parsed(rjgan, "--preset=smoke", f"--exploded_share={share}")
    with pytest.raises(ValueError, match="must split some and leave some whole"):
        runs.load_data(config)


# ---------------------------------------------------------------- presets
TOOLS = ["--generator_learning_rate=0.03", "--discriminator_learning_rate=0.02", "--gradient_clip_norm=2"]
TOOLS += ["--adversarial_loss=hinge", "--l2_weight=0.1", "--r1_weight=3", "--augmentation=cutout, colour"]


def check_tools(model):
    """That a model was compiled as `TOOLS` says."""
    optimizers = {name: value for name, value in vars(model).items() if name.endswith("_optimizer")}
    rates = {name: round(float(optimizer.learning_rate), 6) for name, optimizer in optimizers.items()}
    assert rates.pop("generator_optimizer") == 0.03
    assert set(rates.values()) == {0.02}
    assert (model.adversarial_loss, model.l2_weight, model.r1_weight) == ("hinge", 0.1, 3.0)
    assert (model.gradient_clip_norm, model.augmentation) == (2.0, ("cutout", "colour"))


@pytest.mark.parametrize(("name", "preset"), [(n, p) for n, t in TRAINERS.items() for p in t.PRESETS if p != "smoke"])
@pytest.mark.long
def test_presets_build_their_model_at_another_width(name, preset):
    """Everything of a preset but its data and widths."""
    trainer = TRAINERS[name]
    flags = ["--dataset=actors", "--num_identities=2", "--num_actions=2", "--size=16", "--width=2", "--stride=1"]
    flags += ["--init_from=RUN"] if preset == "paper_mug_pretrained" else []
    config = parsed(trainer, f"--preset={preset}", *flags, *TOOLS, "--discriminator_width=2", "--precision=float32")
    model = trainer.build_model(config, runs.load_data(config))
    assert model.generate(1).shape == (1, config.num_frames, 16, 16, 3)
    check_tools(model)


@pytest.mark.parametrize("name", TRAINERS)
def test_paper_presets_have_the_numbers_of_paper_and_code(name):
    config = parsed(TRAINERS[name], "--preset=paper_mug", "--dataset=PATH")
    assert (config.size, config.num_frames, config.stride, config.batch_size) == (64, 16, 2, 3)
    assert (config.width, config.discriminator_width, config.image_head) == (64, 64, "patch")
    assert (config.generator_learning_rate, config.discriminator_learning_rate) == (2e-4, 2e-4)
    assert (config.beta_1, config.beta_2, config.l2_weight, config.total_steps) == (0.5, 0.999, 1e-5, 100_000)
    assert mocogan.PRESETS["paper_shapes"]["stride"] == 2
    if name == "rjgan":
        assert (config.summary_dim, config.noise_dim, config.summary_every_steps) == (60, 10, 1)
        on_images = parsed(rjgan, "--preset=paper_mug_images", "--dataset=PATH")
        assert (on_images.num_frames, on_images.batch_size, on_images.frames_per_clip) == (1, 10, 1)  # no image twice
    else:
        assert (config.content_dim, config.motion_dim) == (50, 10)


# ---------------------------------------------------------------- data and settings that do not fit
@pytest.mark.parametrize("name", TRAINERS)
def test_sets_without_labels_or_motion_are_refused(tmp_path, name):
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(3):
        np.save(folder / f"{i}.npy", np.full((1, 16, 16, 3), 40 * i, np.uint8))
    flags = ["--preset=smoke", *QUIET, f"--dataset={folder}", f"--run_dir={tmp_path / 'run'}"]
    status, _, error = call(TRAINERS[name].main, *flags, "--short_clip=hold")
    assert status == 1 and "holds single images" in error
    status, _, error = call(TRAINERS[name].main, *flags)
    assert status == 1 and "shorter than the 8 frames" in error
    if name != "rjgan":
        for i in range(3):
            np.save(folder / f"{i}.npy", np.full((8, 16, 16, 3), 40 * i, np.uint8))
        status, _, error = call(TRAINERS[name].main, *flags, "--categorical")
        assert status == 1 and "needs an action for every video" in error


@pytest.mark.long
def test_a_discriminator_that_became_nan_stops_the_run_by_name(tmp_path):
    config = parsed(mocogan, "--preset=smoke", "--nocategorical")
    run_data = runs.load_data(config)
    model = mocogan.build_model(config, run_data)
    head = model.image_discriminator.head.kernel
    head.assign(np.nan * head)
    with pytest.raises(ValueError, match="image_discriminator_loss.*became.*nan"):
        loop.run(model, _dataset(config, run_data), tmp_path, 2, report=lambda line: None)
