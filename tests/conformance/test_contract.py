"""Every contract of a system, run over every entry of `tests/systems.py`."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import pathlib
import pkgutil
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfvidgen.models
from tests.systems import SYSTEMS, System, is_variant, vivid
from tfvidgen.layers.batch_norm import BatchNorm
from tfvidgen.models.base import ROLES, VideoGenerator
from tfvidgen.optimizers import StepGuard, optimizers_of
from trainers.engine import loop

BATCH = 4
pytestmark = pytest.mark.usefixtures("quick_graphs")


@pytest.fixture(params=SYSTEMS, ids=lambda system: system.name)
def system(request) -> System:
    return request.param


def _when(system: System) -> list:
    """When contracts that train run over a system: always for one, else in the long and slow tests."""
    if is_variant(system):
        return [pytest.mark.slow]
    return [] if system.name == "navsynth" else [pytest.mark.long]


@pytest.fixture(params=[pytest.param(system, id=system.name, marks=_when(system)) for system in SYSTEMS])
def trained_system(request) -> System:
    """As `system`, for contracts that train."""
    return request.param


def sgd(rate: float) -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(rate, momentum=0.9)


def compiled(system: System, optimizer=sgd, strategy=None) -> VideoGenerator:
    with (strategy or tf.distribute.get_strategy()).scope():
        keras.utils.set_random_seed(3)
        model = system.build()
        system.compile(model, optimizer)
    return model


def train(system: System, model, tmp_path, steps, strategy=None, **kwargs):
    return loop.run(
        model,
        system.dataset,
        tmp_path,
        steps,
        strategy,
        steps_per_loop=2,
        checkpoint_every_steps=2,
        report=lambda line: None,
        **kwargs,
    )


@pytest.fixture(scope="module")
def straight_run(tmp_path_factory):
    """Four steps on one device, without a stop: the run folder and all state, what other ways of training must equal."""

    @functools.cache
    def run(system: System) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
        model, folder = compiled(system), tmp_path_factory.mktemp(system.name)
        train(system, model, folder, 4)
        return folder, {name: variable.numpy() for name, variable in loop.model_state(model).items()}

    return run


def test_shared_code_names_no_system():
    """Neither by module nor by class: it asks the contract. Citations and the demo, which trains one of them, aside."""
    root = pathlib.Path(tfvidgen.__file__).parents[1]
    modules = {system.model_class.__module__.rpartition(".")[2] for system in SYSTEMS}
    names = {name.lower() for name in modules | {system.model_class.__name__ for system in SYSTEMS}}
    own = {f"{name}.py" for name in modules}
    for package in ("tfvidgen", "trainers", "export"):
        for path in (root / package).rglob("*.py"):
            if path.name in own or path.name == "demo.py":
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                found = [getattr(node, field, None) for field in ("id", "attr", "arg", "module")]
                found += [alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)]
                words = {word for name in found if isinstance(name, str) for word in name.lower().split(".")}
                assert not words & names, f"{path}, line {node.lineno} names {words & names}"


def test_every_public_model_is_listed():
    listed = {system.model_class for system in SYSTEMS}
    for module in pkgutil.iter_modules(tfvidgen.models.__path__):
        namespace = __import__(f"tfvidgen.models.{module.name}", fromlist=["_"])
        for name, value in vars(namespace).items():
            if inspect.isclass(value) and issubclass(value, VideoGenerator) and value is not VideoGenerator:
                assert value in listed, f"{name} is missing from tests/systems.py"


def test_latents_decode_to_videos_in_range(system):
    model = system.build()
    latents = model.sample_latents(3, seed=1)
    assert set(latents) == set(model.latent_spec)
    for name, spec in model.latent_spec.items():
        shape = (3, *(system.num_frames if length is None else length for length in spec.shape))  # None: any length
        assert tuple(latents[name].shape) == shape
        assert latents[name].dtype == spec.dtype
    videos = model.decode(latents).numpy()
    assert videos.shape == (3, *system.video_shape)
    assert videos.dtype == np.float32 and np.abs(videos).max() <= 1.0


def test_same_seed_same_videos(system):
    model = system.build()
    first, again, other = (model.generate(4, seed=seed).numpy() for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0


def test_config_rebuilds_the_model(system):
    model = system.build()
    config = json.loads(json.dumps(model.get_config(), default=str))
    assert set(config) == set(model.get_config())
    again = type(model).from_config(model.get_config())
    again.build()
    assert [w.shape for w in model.weights] == [w.shape for w in again.weights]
    for a, b in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


def test_a_step_moves_every_weight_and_code(trained_system):
    model, system = compiled(trained_system), trained_system
    before = {w.path: w.numpy() for w in model.weights}
    for batch in trained_system.dataset().take(2):  # two steps, so that six videos are all visited
        logs = model.train_step(batch)
    assert all(np.isfinite(float(value)) for value in logs.values()) and "loss" not in logs
    for variable in model.trainable_variables:
        assert np.abs(variable.numpy() - before[variable.path]).max() > 0, f"{variable.path} did not move"
    for name in system.codes:
        rows = getattr(model, name).rows
        moved = np.abs(rows.numpy() - before[rows.path]).reshape(rows.shape[0], -1).max(1)
        assert (moved > 0).all(), f"rows of {name} did not move: {np.flatnonzero(moved == 0)}"


@pytest.mark.low_precision
def test_low_precision_is_for_networks_alone(trained_system):
    """Latents, recurrences, videos, losses and weights stay in float32."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = compiled(trained_system)
    finally:
        keras.config.set_dtype_policy(before)
    layers = model._flatten_layers()
    assert {layer.compute_dtype for layer in layers if isinstance(layer, keras.layers.RNN)} <= {"float32"}
    assert any(layer.compute_dtype == "bfloat16" for layer in layers)
    logs = model.train_step(next(iter(trained_system.dataset())))
    assert all(value.dtype == tf.float32 and np.isfinite(float(value)) for value in logs.values())
    latents = model.sample_latents(2)
    assert {value.dtype for value in latents.values()} <= {tf.float32, tf.int32}
    assert model.decode(latents).dtype == tf.float32
    assert not any(weight.dtype in ("bfloat16", "float16") for weight in model.weights)


def test_steps_on_a_fixed_batch_lower_the_loss(trained_system):
    """A system without players learns the batch; of an adversarial one, each player wins against those that are held."""
    batch = next(iter(trained_system.dataset()))
    model = compiled(trained_system, keras.optimizers.Adam)
    # moments, too: those that a held optimizer gathered belong to other opponents
    variables = [
        *model.variables,
        *(variable for optimizer in optimizers_of(model) for variable in optimizer.variables),
    ]
    start = [variable.numpy() for variable in variables]
    rates = {id(optimizer): float(optimizer.learning_rate) for optimizer in optimizers_of(model)}
    step = tf.function(model.train_step)
    for loss, player in trained_system.objectives:
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
        for optimizer in optimizers_of(model):
            held = player and optimizer is not getattr(model, player)
            optimizer.learning_rate = 0.0 if held else rates[id(optimizer)]
        losses = [float(step(batch)[loss]) for _ in range(60)]
        first, last = np.mean(losses[:5]), np.mean(losses[-5:])
        share = 0.1 if player else 0.3  # batch norm in a held discriminator leaves a generator little to win
        assert last < first - share * abs(first), f"{loss} went from {first:.3f} to {last:.3f}"
    assert step.experimental_get_tracing_count() == 1


def test_resumed_run_equals_straight_run_bit_for_bit(trained_system, tmp_path, straight_run):
    """It goes on from the straight run's own checkpoint of step 2, as after a kill."""
    folder, expected = straight_run(trained_system)
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints", ignore=shutil.ignore_patterns("ckpt-4.*"))
    (tmp_path / "checkpoints" / "checkpoint").write_text('model_checkpoint_path: "ckpt-2"\n')
    resumed = compiled(trained_system)
    train(trained_system, resumed, tmp_path, 4)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [4]
    state = loop.model_state(resumed)
    assert len(state) >= len(resumed.variables)  # nothing that a layer keeps in a list is left out
    assert set(state) == set(expected)
    for name, variable in state.items():
        np.testing.assert_array_equal(variable.numpy(), expected[name], err_msg=name)


def test_two_replicas_equal_one_device(trained_system, tmp_path, straight_run, two_replicas):
    model = compiled(trained_system, strategy=two_replicas)
    train(trained_system, model, tmp_path, 4, strategy=two_replicas)
    _, expected = straight_run(trained_system)
    for name, variable in loop.model_state(model).items():
        np.testing.assert_allclose(variable.numpy(), expected[name], atol=1e-6, rtol=0, err_msg=name)


@pytest.fixture
def fixed_norms(monkeypatch):
    """Batch norm divides by its moving statistics, as in evaluation, so that examples do not depend on each other."""

    def call(self, inputs, training=None, mask=None):
        return keras.layers.BatchNormalization.call(self, inputs, training=False)

    monkeypatch.setattr(BatchNorm, "call", call)


def compile_with(monkeypatch, system: System, **options) -> None:
    """From now on the system is compiled with these options, too."""
    changed = functools.partialmethod(system.model_class.compile, **options)
    monkeypatch.setattr(system.model_class, "compile", changed)


def assert_same_state(model, expected) -> None:
    for name, variable in loop.model_state(model).items():
        np.testing.assert_allclose(variable.numpy(), expected[name], atol=1e-6, rtol=0, err_msg=name)


def test_micro_batches_equal_one_batch(trained_system, fixed_norms, monkeypatch):
    """Draws of noise, frames and augmentation among it; batch norm alone would see other batches."""
    states = []
    for accumulate in (1, 2):
        with monkeypatch.context() as patch:
            compile_with(patch, trained_system, accumulate=accumulate)
            model = compiled(trained_system)
        logs = [model.train_step(batch) for batch in trained_system.dataset().take(2)]
        states.append({name: variable.numpy() for name, variable in loop.model_state(model).items()})
    assert_same_state(model, states[0])
    assert all(np.isfinite(float(value)) for step in logs for value in step.values())


ON_REPLICAS = [("navsynth", {"accumulate": 2}), ("rmocogan", {"accumulate": 2}), ("vgan", {"discriminator_steps": 2})]


@pytest.mark.long
@pytest.mark.parametrize(("name", "options"), ON_REPLICAS, ids=[name for name, _ in ON_REPLICAS])
def test_parts_of_a_batch_are_the_same_on_two_replicas(name, options, fixed_norms, monkeypatch, two_replicas):
    [system] = [system for system in SYSTEMS if system.name == name]
    states = []
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        if strategy is two_replicas or "accumulate" not in options:
            compile_with(monkeypatch, system, **options)
        model = compiled(system, strategy=strategy)
        step = tf.function(lambda batch, strategy=strategy, model=model: strategy.run(model.train_step, args=(batch,)))
        for batch in strategy.experimental_distribute_dataset(system.dataset().take(2)):
            step(batch)
        states.append({name: variable.numpy() for name, variable in loop.model_state(model).items()})
    assert_same_state(model, states[0])


ADVERSARIAL = [system for system in SYSTEMS if system.objectives[0][1]]


@pytest.mark.parametrize("system", [pytest.param(each, id=each.name, marks=_when(each)) for each in ADVERSARIAL])
def test_discriminators_move_several_times_by_clips_of_their_own(system, monkeypatch):
    compile_with(monkeypatch, system, discriminator_steps=2)
    model, batch = compiled(system), next(iter(system.dataset()))
    judge = getattr(model, "video_discriminator", None) or model.discriminator
    ours, seen, gradients = {id(v) for v in judge.trainable_variables}, [], StepGuard.gradients

    def recorded(self, objective, *groups, inputs=(), **arguments):
        if any(id(variable) in ours for group in groups for variable in group):
            seen.append(np.round((inputs[0].numpy() + 1.0) * 127.5).astype(np.uint8))
        return gradients(self, objective, *groups, inputs=inputs, **arguments)

    monkeypatch.setattr(StepGuard, "gradients", recorded)
    model.train_step(batch)
    assert len(seen) == 2
    for i, clips in enumerate(seen):
        np.testing.assert_array_equal(clips, batch["video"].numpy()[i::2])
    moves = {name: int(optimizer.iterations) for name, optimizer in players(model).items()}
    assert moves == {name: 1 if name == "generator_optimizer" else 2 for name in moves}


def players(model) -> dict[str, keras.optimizers.Optimizer]:
    return {
        name: value
        for name, value in vars(model).items()
        if name.endswith("_optimizer") and isinstance(value, keras.optimizers.Optimizer)
    }


BAD_PARTS = [
    ({"accumulate": 0}, "`accumulate` must be a whole number of at least 1. Received 0"),
    ({"accumulate": 3}, "accumulate=3 cannot divide the 4 clips that the batch has: make it one of 1, 2, 4"),
    ({"discriminator_steps": 1.5}, "`discriminator_steps` must be a whole number"),
    ({"discriminator_steps": 3}, "discriminator_steps=3 cannot share the 4 clips"),
    (
        {"discriminator_steps": 2, "accumulate": 4},
        "divide the 2 clips .* discriminator_steps=2 updates.* 1, 2, or .* of 8",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD_PARTS, ids=lambda value: str(value)[:30])
def test_parts_that_a_batch_does_not_have_are_refused(options, message, monkeypatch):
    [system] = [system for system in SYSTEMS if system.name == "vgan"]
    compile_with(monkeypatch, system, **options)
    with pytest.raises(ValueError, match=message):
        compiled(system).train_step(next(iter(system.dataset())))


def test_fit_uses_the_same_step(trained_system, straight_run):
    model = compiled(trained_system)
    history = model.fit(trained_system.dataset(), steps_per_epoch=4, epochs=1, verbose=0, shuffle=False).history
    assert {loss for loss, _ in trained_system.objectives} <= set(history)
    _, expected = straight_run(trained_system)
    for name, variable in loop.model_state(model).items():
        np.testing.assert_allclose(variable.numpy(), expected[name], atol=1e-6, rtol=0, err_msg=name)


def test_sampling_draws_with_no_key_of_a_step(trained_system, monkeypatch):
    """So no seed gives the codes of a training step again."""
    model, keys, split = compiled(trained_system), [], tf.random.split

    def noted(key, num):
        keys.append(tuple(np.asarray(key)))
        return split(key, num)

    monkeypatch.setattr(tf.random, "split", noted)
    for name in ("stateless_normal", "stateless_uniform"):
        draw = getattr(tf.random, name)
        monkeypatch.setattr(
            tf.random,
            name,
            lambda shape, seed, *a, draw=draw, **k: keys.append(tuple(np.asarray(seed))) or draw(shape, seed, *a, **k),
        )
    for seed in range(3):
        model.sample_latents(2, seed=seed)
    of_sampling = set(keys)
    keys.clear()
    seed = model.get_config()["seed"]
    assert seed < 3 and len(of_sampling) >= 3
    model.train_step(next(iter(trained_system.dataset(start_step=1))))
    assert (seed, 1) in keys  # a step's keys are (seed, step), and what is split off from those
    assert not of_sampling & {*keys, *((seed, step) for step in range(3)), *((other, 0) for other in range(3))}


def test_lookup_gives_a_code_per_video(system):
    model = system.build()
    if type(model).lookup is VideoGenerator.lookup:
        with pytest.raises(NotImplementedError, match="does not learn"):
            model.lookup(np.array([0]))
        return
    latents = model.lookup(np.array([1, 0], np.int32))
    assert set(latents) == set(model.latent_spec)
    assert model.decode(latents).shape[0] == 2


def test_reconstruct_is_the_systems_own_version_of_a_video(system):
    model, batch = compiled(system), next(iter(system.dataset()))
    if not (model.has_encoder or model.has_lookup):
        with pytest.raises(ValueError, match="generates new videos only"):
            model.reconstruct(batch)
        return
    made = model.reconstruct(batch).numpy()
    assert made.shape == (BATCH, *system.video_shape) and np.abs(made).max() <= 1.0
    again, of_seed = model.reconstruct(batch).numpy(), model.reconstruct(batch, seed=3).numpy()
    np.testing.assert_array_equal(made, again)
    np.testing.assert_array_equal(of_seed, model.reconstruct(batch, seed=3).numpy())
    losses = model.validation_losses(batch)
    assert set(losses) == set(model.validation_names) and all(loss.shape == (BATCH,) for loss in losses.values())


def test_every_latent_has_a_role(system):
    model = system.build()
    names = [name for role in ROLES for name in model.latent_names(role)]
    assert sorted(names) == sorted(model.latent_spec)
    assert model.latent_names("content") or model.latent_names("motion")
    assert model.latent_names("label") == (("label",) if model.num_labels else ())


def test_the_label_changes_the_clip(system):
    model = system.build()
    if not model.num_labels:
        with pytest.raises(ValueError, match="unconditional"):
            model.sample_latents(2, labels=0)
        with pytest.raises(ValueError, match="unconditional"):
            model.relabel(model.sample_latents(2), 0)
        return
    vivid(model)
    first, second = (model.sample_latents(3, seed=4, labels=label) for label in (0, [1, 1, 1]))
    np.testing.assert_array_equal(first["label"], [0, 0, 0])
    assert np.abs(model.decode(first) - model.decode(second)).max() > 1e-3
    relabelled = model.relabel(first, 1)
    assert np.abs(model.decode(relabelled) - model.decode(first)).max() > 1e-3
    if not model.has_lookup:  # else a code of another video, which the label chose
        for name in second:
            np.testing.assert_array_equal(relabelled[name], second[name], err_msg=name)
    np.testing.assert_array_equal(model.generate(3, seed=4, labels=1), model.decode(second))
    in_graph = tf.function(lambda labels: model.sample_latents(3, seed=4, labels=labels))(tf.constant([1, 1, 1]))
    for name in second:
        np.testing.assert_allclose(in_graph[name], second[name], atol=1e-6, err_msg=name)
    for labels in (model.num_labels, -1, [0, 1, model.num_labels]):
        with pytest.raises(ValueError, match=rf"`labels` must lie in 0..{model.num_labels - 1}"):
            model.sample_latents(3, labels=labels)
    with pytest.raises(ValueError, match="`labels` must be one per video, 3 in all. Received 2"):
        model.sample_latents(3, labels=[0, 1])
    with pytest.raises(ValueError, match="`labels` must be an int"):
        model.sample_latents(3, labels=0.5)


def test_only_lengths_that_can_be_made_are_made(system):
    model = system.build()
    lengths = model.lengths(2 * system.num_frames)
    assert system.num_frames in lengths and model.latent_length() == model.latent_length(system.num_frames)
    for num_frames in range(2 * system.num_frames + 1):
        if num_frames in lengths:
            assert model.generate(1, num_frames).shape[1] == num_frames
        else:
            with pytest.raises(ValueError, match=f"Received num_frames={num_frames}"):
                model.generate(1, num_frames)


def test_exchange_takes_what_its_spec_says(system):
    model = system.build()
    spec = model.exchange_spec
    assert set(spec) in (set(), {"identity", "action"})
    assert (model.num_identities, model.num_actions) == tuple(
        spec[name].num_values if spec else 0 for name in ("identity", "action")
    )
    if not spec:
        with pytest.raises(NotImplementedError, match="no codes of identities and actions"):
            model.exchange(np.array([0]), np.array([0]))
        return
    last = [np.array([choice.num_values - 1, 0], np.int32) for choice in spec.values()]
    latents = model.exchange(*last)
    assert set(latents) == set(model.latent_spec) and model.decode(latents).shape[0] == 2


def test_public_names_have_docstrings(system):
    for name, member in vars(system.model_class).items():
        if (
            name.startswith("_")
            or not callable(member)
            or name in ("build", "get_config", "decode", "train_step", "call")
        ):
            continue
        assert inspect.getdoc(getattr(system.model_class, name)), (
            f"{system.model_class.__name__}.{name} has no docstring"
        )
