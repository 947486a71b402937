"""The running average of weights and codes: its arithmetic, its way through checkpoints, and who gets to see it."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.systems import SYSTEMS
from tests.trainers.mean_colour import NormedColour, assert_equal, train
from trainers import evaluate, generate, navsynth, runs, samples
from trainers.engine import checkpoints, loop
from trainers.engine.ema import WeightAverage

DECAY, STEPS = 0.7, 4
pytestmark = pytest.mark.usefixtures("quick_graphs")


def compiled(strategy=None):
    """(model, average) in the scope of a strategy."""
    with (strategy or tf.distribute.get_strategy()).scope():
        keras.utils.set_random_seed(3)
        model = NormedColour()
        model.build()
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9))
        return model, WeightAverage(model, DECAY)


def weights_of(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without batch norm's statistics, which are not the average of anything."""
    return {name: value for name, value in state.items() if ".moving_" not in name}


def learned(model) -> dict[str, np.ndarray]:
    """Weights, batch norm statistics and codes by name, without the codes' slots."""
    state = {variable.path.partition("/")[2].replace("/", "."): variable.numpy() for variable in model.weights}
    return {name: value for name, value in state.items() if name != "codes.velocity"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run folder, model, average, the weights after each step) of a short run."""
    run_dir = tmp_path_factory.mktemp("averaged")
    model, average = compiled()
    after = []
    record = loop.Action(lambda step, logs: after.append(learned(model)), 1, uses_weights=False)
    train(model, run_dir, STEPS, average=average, steps_per_loop=1, actions=[record])
    return run_dir, model, average, after


def expected_average(after) -> dict[str, np.ndarray]:
    """The definition, in float64: sum_i (1 - d) d^(t - i) w_i / (1 - d^t)."""
    steps = len(after)
    factors = [(1 - DECAY) * DECAY ** (steps - 1 - i) / (1 - DECAY**steps) for i in range(steps)]
    assert sum(factors) == pytest.approx(1.0)
    return {
        name: sum(factor * values[name].astype(np.float64) for factor, values in zip(factors, after, strict=True))
        for name in after[0]
    }


# ---------------------------------------------------------------- arithmetic
def test_the_average_is_what_its_formula_says(trained):
    _, model, average, after = trained
    assert len(after) == STEPS
    expected, own = expected_average(after), learned(model)
    with average.applied():
        for name, value in weights_of(learned(model)).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    moved = [name for name in own if np.abs(own[name] - expected[name]).max() > 1e-4]
    assert {"to_colour.kernel", "codes.rows"} <= set(moved)


def test_batch_norm_has_the_statistics_of_videos_made_with_the_averaged_weights(trained):
    """Means over batches of what goes into it, whatever the steps had."""
    _, model, average, _ = trained
    before = learned(model)
    with average.applied():
        colours = [model.to_colour(model.sample_latents(8, seed=seed)["codes"]).numpy() for seed in range(8)]
        np.testing.assert_allclose(model.norm.moving_mean, np.mean(colours, (0, 1)), atol=1e-6)
        np.testing.assert_allclose(model.norm.moving_variance, np.var(colours, 1).mean(0), rtol=1e-4)
        assert np.abs(before["norm.moving_mean"] - model.norm.moving_mean.numpy()).max() > 0.01
    assert model.norm.momentum == 0.9


def test_the_weights_come_back_bit_for_bit(trained):
    _, model, average, after = trained
    with average.applied():
        pass
    assert_equal(learned(model), after[-1])
    with pytest.raises(ZeroDivisionError), average.applied():
        raise ZeroDivisionError
    assert_equal(learned(model), after[-1])


@pytest.mark.parametrize("system", [SYSTEMS[1], SYSTEMS[3]], ids=lambda system: system.name)
def test_all_that_a_system_learns_is_averaged(system):
    model = system.build()
    own = {"average.mass", *(["average.decay", "average.steps"] if system.codes else [])}
    names = {variable.path.partition("/")[2].replace("/", ".") for variable in model.weights}
    rows = {f"{codes}.rows" for codes in system.codes}
    parts = {f"average.{name}.{part}" for name in rows for part in ("sums", "since")}
    assert set(WeightAverage(model, DECAY).state) == {f"average.{name}" for name in names - rows} | parts | own


def test_averaged_codes_are_what_their_table_allows(tmp_path):
    """The mean of points on a sphere lies within it."""
    model = NormedColour()
    model.codes.projection, model.codes.learning_rate = "unit_sphere", 100.0
    model.build()
    model.compile(keras.optimizers.SGD(0.05))
    average = WeightAverage(model, DECAY)
    after = []
    record = loop.Action(lambda step, logs: after.append(learned(model)), 1, uses_weights=False)
    train(model, tmp_path, STEPS, average=average, steps_per_loop=1, actions=[record])
    mean = expected_average(after)["codes.rows"]
    norms = np.linalg.norm(mean, axis=-1, keepdims=True)
    assert norms.min() < 0.95
    with average.applied():
        np.testing.assert_allclose(model.codes.rows.numpy(), mean / norms, atol=1e-5)


def test_an_average_of_no_steps_changes_nothing():
    model, average = compiled()
    before = learned(model)
    with average.applied():
        assert_equal(learned(model), before)


def test_the_first_step_is_its_own_average(tmp_path):
    model, average = compiled()
    train(model, tmp_path, 1, average=average)
    with average.applied():
        inside = learned(model)
    for name, value in weights_of(learned(model)).items():
        np.testing.assert_allclose(inside[name], value, rtol=1e-6, atol=1e-7, err_msg=name)


def test_two_replicas_average_as_one_device(trained, tmp_path, two_replicas):
    _, _, _, after = trained
    model, average = compiled(two_replicas)
    train(model, tmp_path, STEPS, average=average, strategy=two_replicas)
    expected, own = expected_average(after), learned(model)
    variables = {"codes.rows": model.codes.rows}
    variables |= {v.path.partition("/")[2].replace("/", "."): v for v in model.trainable_variables}
    with average.applied():
        for name, variable in variables.items():
            for copy in two_replicas.experimental_local_results(variable.value):
                np.testing.assert_allclose(copy.numpy(), expected[name], atol=3e-6, rtol=0, err_msg=name)
        first, second = two_replicas.experimental_local_results(model.norm.moving_mean.value)
        np.testing.assert_array_equal(first, second)
        assert np.abs(first.numpy() - own["norm.moving_mean"]).max() > 0.01
    for name, variable in variables.items():
        for copy in two_replicas.experimental_local_results(variable.value):
            np.testing.assert_array_equal(copy.numpy(), own[name])


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, float("nan")])
def test_a_decay_lies_between_none_and_all(decay):
    with pytest.raises(ValueError, match="must lie between 0 and 1, e.g. 0.999. Received"):
        WeightAverage(SYSTEMS[1].build(), decay)


# ---------------------------------------------------------------- checkpoints
def test_a_resumed_run_goes_on_with_its_average(trained, tmp_path):
    _, _, average, _ = trained
    model, begun = compiled()
    train(model, tmp_path, 2, average=begun)
    model, resumed = compiled()
    train(model, tmp_path, STEPS, average=resumed)
    assert_equal(
        {name: variable.numpy() for name, variable in resumed.state.items()},
        {name: variable.numpy() for name, variable in average.state.items()},
    )


def test_a_loaded_model_has_the_average_unless_raw_weights_are_asked_for(trained):
    run_dir, model, average, after = trained
    loaded = NormedColour()
    loaded.build()
    assert checkpoints.restore(loaded, run_dir, raw_weights=True) == STEPS
    assert_equal(learned(loaded), after[-1])
    assert checkpoints.restore(loaded, run_dir) == STEPS
    with average.applied():
        assert_equal(learned(loaded), learned(model))


# ---------------------------------------------------------------- who sees it
def test_actions_find_the_average_unless_they_do_without(trained, tmp_path):
    _, _, _, after = trained
    model, average = compiled()
    seen = {True: [], False: []}
    actions = [
        loop.Action(lambda step, logs, uses=uses: seen[uses].append(learned(model)), 2, uses_weights=uses)
        for uses in seen
    ]
    train(model, tmp_path, 2, average=average, actions=actions[:1])
    for name, value in weights_of(expected_average(after[:2])).items():
        np.testing.assert_allclose(seen[True][0][name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    train(model, tmp_path, 4, average=average, actions=actions[1:])
    assert_equal(seen[False][0], after[3])


RUN = (
    *(
        "--preset=smoke",
        "--total_steps=3",
        "--learning_rate=0.05",
        "--latent_learning_rate=0.5",
        "--static_by=identity",
    ),
    *("--transient_by=action", "--strategy=none", "--notensorboard", "--update=joint"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder that a trainer wrote with `--ema_decay`."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    assert navsynth.main([*RUN, "--ema_decay=0.5", f"--run_dir={run_dir}"]) == 0
    return run_dir


@pytest.mark.long
def test_a_run_is_measured_with_its_average(run):
    def measured() -> dict:
        content = json.loads((run / "evaluation.json").read_text())
        return {name: content[name] for name in ("new_videos", "trained_videos")}

    averaged = measured()
    model, _ = runs.load_model(run)
    assert evaluate.evaluate_run(run, model=model, step=3, report=lambda line: None)
    assert measured() == averaged
    assert evaluate.main([f"--run_dir={run}", "--raw_weights"]) == 0
    assert measured() != averaged
    assert evaluate.main([f"--run_dir={run}"]) == 0
    assert measured() == averaged


@pytest.mark.long
def test_videos_are_generated_with_the_average(run, tmp_path):
    expected = {}
    for raw in (False, True):
        model, _ = runs.load_model(run, raw_weights=raw)
        expected[raw] = samples.decode(model, model.sample_latents(4, seed=2))
        flags = ["--raw_weights"] if raw else []
        out = tmp_path / str(raw)
        assert generate.main([f"--run_dir={run}", "--num_videos=4", "--seed=2", f"--out={out}", *flags]) == 0
        np.testing.assert_array_equal(np.load(out / "new.npy"), expected[raw])
    assert (expected[False] != expected[True]).any()


def test_an_average_is_part_of_what_a_run_is(run, capsys):
    assert navsynth.main([*RUN, f"--run_dir={run}"]) == 1
    assert "ema_decay: was 0.5, now 0.0" in capsys.readouterr().err
