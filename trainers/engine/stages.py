"""Training stages: consecutive parts of a run, each with its own batches and training step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from tfvidgen.models.base import VideoGenerator


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run; `model.begin_stage(name)` selects what the model's `train_step` does in it.

    Attributes:
        name: One of the model's `stages`, in their order; empty for a model that has none.
        dataset_fn: Called with a step of the stage, 0 at its beginning; returns an infinite dataset of global batches in step
            order from there on. A batch is what the model's `train_step` takes in this stage; one without `step` is given it.
        num_steps: Length of the stage; None, allowed for the last one only, for all remaining steps of the run.
        at_epoch: Called on every worker, outside the graph, with the number of epochs of the stage that are over: 0 before its
            first step, then after every `epoch_steps` steps, before the checkpoint of that step. Whatever it changes must be
            a variable of the model, and a function of the model's state and of that number, so that a resumed run continues
            exactly.
        epoch_steps: Steps of an epoch; 0 calls `at_epoch` only before the first step.
        frames_per_step: Frames in a global batch, to show speed in frames per second; 0 shows steps per second.

    Raises:
        ValueError: If a number is negative or no int.
    """

    name: str
    dataset_fn: Callable[[int], tf.data.Dataset]
    num_steps: int | None = None
    at_epoch: Callable[[int], None] | None = None
    epoch_steps: int = 0
    frames_per_step: int = 0

    def __post_init__(self):
        for name, minimum in (("num_steps", 1), ("epoch_steps", 0), ("frames_per_step", 0)):
            value = getattr(self, name)
            if name == "num_steps" and value is None:
                continue
            # an int also where it is a step in `config.json`
            if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
                raise ValueError(
                    f"Stage {self.name!r}: `{name}` must be an int of at least {minimum}. Received {value!r}."
                )


def require_stages(model: VideoGenerator, stages: Sequence[Stage]) -> None:
    """Raises ValueError if the stages are not those of the model, in its order."""
    given = [stage.name for stage in stages]
    if given != list(model.stages or ("",)):
        one = "none: it is trained in a single stage"
        raise ValueError(
            f"The stages of {type(model).__name__} are {', '.join(model.stages) or one}. Received {', '.join(given) or 'none'}: "
            "give a Stage for each, in that order, in what `trainers.train.main` is passed as `stages`."
        )


class Course:
    """The stages of a run and the steps at which they begin and end.

    Args:
        stages: In the order in which they are trained.
        total_steps: Steps of the run, all stages together.

    Attributes:
        begins: The first step of each stage, by name.

    Raises:
        ValueError: If a stage but the last has no length, or they leave no step for the last.
    """

    def __init__(self, stages: Sequence[Stage], total_steps: int):
        self._stages, self._ends = list(stages), []
        end = 0
        for stage in stages[:-1]:
            if stage.num_steps is None:
                raise ValueError(f"Only the last stage may leave out `num_steps`. Received {stage.name!r} without it.")
            end += stage.num_steps
            self._ends.append(end)
        last = stages[-1]
        if end >= total_steps or (last.num_steps is not None and end + last.num_steps != total_steps):
            lengths = ", ".join(f"{stage.name} {stage.num_steps or 'the rest'}" for stage in stages)
            raise ValueError(
                f"The run has {total_steps} steps in all, but its stages take {lengths}: raise total_steps, or shorten the "
                "earlier stages."
            )
        self._ends.append(total_steps)
        self.begins = {stage.name: begin for stage, begin in zip(stages, [0, *self._ends], strict=False)}

    def stage(self, step: int) -> Stage:
        """The stage that a step belongs to; the last stage for the step after the last."""
        return next((s for s, end in zip(self._stages, self._ends, strict=True) if step < end), self._stages[-1])

    def reached(self, step: int) -> Stage:
        """The stage that the weights after `step` steps are of: a stage's last step still belongs to it."""
        return self.stage(max(0, step - 1))

    def is_begin(self, step: int) -> bool:
        """Whether a stage begins with this step."""
        return step in self.begins.values()

    def is_end(self, step: int) -> bool:
        """Whether a stage ended with the step before this one."""
        return step in self._ends

    def end(self, name: str) -> int:
        """The step after the last of a stage. Raises ValueError if there is no such stage."""
        for stage, end in zip(self._stages, self._ends, strict=True):
            if stage.name == name:
                return end
        known = ", ".join(self.begins) if any(self.begins) else ""
        expected = f"must be one of {known}" if known else "must be left out: this system trains in a single stage"
        raise ValueError(f"--stage {expected}. Received {name!r}.")

    def require_before(self, name: str, step: int) -> None:
        """Raises ValueError unless all stages before `name` are finished at a step."""
        self.end(name)
        if step < self.begins[name]:
            now = self.stage(step)
            raise ValueError(
                f"--stage={name} begins after step {self.begins[name]}, when the stages before it are finished, but the run is "
                f"at step {step}, in {now.name}: finish that with --stage={now.name}, or leave out --stage to train all."
            )

    def dataset(self, step: int) -> tf.data.Dataset:
        """The batches from a step of the run on, to the end of its stage; their `step` counts the steps of the run.

        So no two steps draw the same numbers, whatever stages they are of, and whichever optimizers those use.
        """
        stage, begin = self.stage(step), self.begins[self.stage(step).name]
        dataset = stage.dataset_fn(step - begin)
        if not isinstance(dataset.element_spec, dict):  # of a `train_step` that takes something else
            return dataset
        if "step" not in dataset.element_spec:
            return dataset.enumerate(step).map(_numbered)
        return dataset.map(lambda batch: {**batch, "step": batch["step"] + begin}) if begin else dataset

    def steps_left(self, step: int) -> int:
        """Steps until the stage or its epoch ends."""
        stage = self.stage(step)
        left = self.end(stage.name) - step
        period = stage.epoch_steps if stage.at_epoch else 0
        return min(left, period - (step - self.begins[stage.name]) % period) if period else left

    def epochs(self, step: int) -> int:
        """The epochs to call `at_epoch` with after `step` steps of the run; 0 if none ends there."""
        stage = self.reached(step)
        done = step - self.begins[stage.name]
        is_end = stage.at_epoch and stage.epoch_steps and done % stage.epoch_steps == 0
        return done // stage.epoch_steps if is_end else 0


def _numbered(step: tf.Tensor, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """A batch with its step, int64 (B,)."""
    some = tf.nest.flatten(batch)[0]
    return {**batch, "step": tf.fill([some.shape[0] or tf.shape(some)[0]], step)}


def begin_stage(model: VideoGenerator, stage: Stage) -> None:
    """Tells a model which stage it is in, if it has any."""
    if stage.name:
        model.begin_stage(stage.name)
