"""SavedModels are loaded where tfvidgen does not exist and must give the live model's frames."""

import dataclasses
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from export import card, client, endpoints, saved_model, serving
from export.server import runtime
from tests.export.conftest import assert_same_frames, assert_same_pixels, start_server
from tests.systems import NUM_ACTIONS, SYSTEMS, vivid
from tfvidgen.models.base import VideoGenerator
from tfvidgen.visualize import to_uint8
from trainers import runs

# A server knows TensorFlow only. It answers every call in calls.json with the outputs, or with the error.
SERVER = """
import json, pathlib, sys
for name in ("tfvidgen", "trainers", "export", "keras"):
    sys.modules[name] = None  # importing them raises
import numpy as np
import tensorflow as tf

root = pathlib.Path(sys.argv[1])
answers, endpoints, arrays = {}, {}, {}
for system, calls in json.loads((root / "calls.json").read_text()).items():
    signatures = tf.saved_model.load(str(root / system / "1")).signatures
    endpoints[system] = {
        name: {key: [spec.dtype.name, spec.shape.as_list()] for key, spec in function.structured_input_signature[1].items()}
        for name, function in signatures.items()
    }
    answers[system] = {}
    for name, (endpoint, inputs) in calls.items():
        try:
            tensors = {key: tf.constant(np.array(value, dtype).reshape(shape)) for key, (dtype, value, shape) in inputs.items()}
            result = {key: value.numpy() for key, value in signatures[endpoint](**tensors).items()}
            answers[system][name] = sorted(result)
            for key, value in result.items():
                if value.dtype == object:  # JPEG files: npz has no pickles
                    value = np.array([[list(data.ljust(4096, b"\\0")) for data in row] for row in value], np.uint8)
                arrays[f"{system}/{name}/{key}"] = value
        except Exception as error:
            answers[system][name] = f"{type(error).__name__}: {error}"
(root / "answers.json").write_text(json.dumps([answers, endpoints]))
np.savez(root / "answers.npz", **arrays)
"""


@dataclasses.dataclass(frozen=True)
class Served:
    """One system, live and as the server answered for it."""

    model: VideoGenerator
    folder: pathlib.Path
    endpoints: dict[str, dict]
    answers: dict[str, list[str] | str]
    outputs: dict[str, np.ndarray]

    def video(self, call: str) -> np.ndarray:
        assert self.answers[call] == ["video"], self.answers[call]
        return self.outputs[f"{call}/video"]

    def error(self, call: str) -> str:
        assert isinstance(self.answers[call], str), f"{call} was answered"
        return self.answers[call]

    @property
    def metadata(self) -> dict:
        return json.loads((self.folder / "1" / "metadata.json").read_text())


# Reloaded by default: learned codes and labels (exported once for this folder), and a free length with an encoder.
DEFAULT = ("navsynth_exchange_joint", "free_length")
SERVED = [*DEFAULT, *(pytest.param(s.name, marks=pytest.mark.slow) for s in SYSTEMS if s.name not in DEFAULT)]


def one_of_each_class() -> list:
    """The first system of each class; `-m slow` takes the others."""
    seen, chosen = set(), []
    for system in SYSTEMS:
        chosen.append(
            pytest.param(system, marks=pytest.mark.slow if system.model_class in seen else (), id=system.name)
        )
        seen.add(system.model_class)
    return chosen


SEEDS = (9, 2**40, -3)


def calls_of(model: VideoGenerator, metadata: dict) -> dict[str, tuple[str, dict]]:
    """Name -> (endpoint, inputs as (dtype, values)) of everything that the server is asked."""

    def seeds(*values):
        return {"seed": ("int64", values)}

    latents = {name: np.asarray(value) for name, value in model.sample_latents(3, seed=5).items()}
    given = {name: (value.dtype.name, value.tolist()) for name, value in latents.items()}
    several = [name for name, (dtype, _) in given.items() if dtype == "float32"]
    first = several[0]
    broken = np.array(latents[first])
    broken.flat[0] = np.nan
    ends = {"a": ("int64", 9), "b": ("int64", 2**40)}
    steps = metadata["limits"]["num_steps"]
    calls = {
        "seeds": ("serving_default", seeds(*SEEDS, 9)),
        **{f"seed {seed}": ("serving_default", seeds(seed)) for seed in SEEDS},
        "error: no seeds": ("serving_default", seeds()),
        "error: unnamed seed": ("serving_default", {}),
        "decode": ("decode", given),
        **{
            f"error: decode without {name}": ("decode", {n: v for n, v in given.items() if n != name}) for name in given
        },
        "error: not a number": ("decode", {**given, first: ("float32", broken.tolist())}),
        "interpolate": ("interpolate", {**ends, "num_steps": ("int32", 4)}),
        "error: one step": ("interpolate", {**ends, "num_steps": ("int32", 1)}),
        "error: too many steps": ("interpolate", {**ends, "num_steps": ("int32", steps + 1)}),
    }
    if len(given) > 1:
        dtype, values = given[first]
        calls["error: fewer rows"] = ("decode", {**given, first: (dtype, values[:1])})
    for name, entry in metadata["latents"].items():
        if None in entry["shape"]:
            dtype, values = given[name]
            most = metadata["limits"]["num_frames"]
            for call, frames in {"no": 0, "too many": most + 1}.items():
                longer = np.resize(np.array(values, dtype), (3, frames, *np.shape(values)[2:]))
                calls[f"error: {call} frames of {name}"] = ("decode", {**given, name: (dtype, longer.tolist())})
        if "range" in entry:
            for value in (entry["range"][0] - 1, entry["range"][1] + 1):
                label = np.full_like(latents[name], value).tolist()
                calls[f"error: {name} {value}"] = ("decode", {**given, name: ("int32", label)})
    served = metadata["endpoints"]
    if "lookup" in served:
        count = served["lookup"]["inputs"]["video_id"]["range"][1] + 1
        for name, ids in {"lookup": [count - 1, 0, 2], "error: beyond": [0, count], "error: before": [-1]}.items():
            calls[name] = ("lookup", {"video_id": ("int32", ids)})
    if "exchange" in served:
        last = {name: entry["range"][1] for name, entry in served["exchange"]["inputs"].items()}
        for name, identity, action in (
            ("exchange", [last["identity"], 0], [0, last["action"]]),
            ("error: beyond identities", [last["identity"] + 1], [0]),
            ("error: before identities", [-1], [0]),
            ("error: beyond actions", [0], [last["action"] + 1]),
            ("error: before actions", [0], [-1]),
            ("error: unequal", [0, 0], [0]),
        ):
            calls[name] = ("exchange", {"identity": ("int32", identity), "action": ("int32", action)})
    if "generate" in served:
        most = metadata["limits"]["num_frames"]
        for name, length in {
            "short": 1,
            "long": most,
            "error: no frames": 0,
            "error: too many frames": most + 1,
        }.items():
            calls[name] = ("generate", {**seeds(9, -3), "num_frames": ("int32", length)})
    if "conditional" in served:
        last = served["conditional"]["inputs"]["label"]["range"][1]
        for name, labels in {
            "conditional": [last, 0],
            "error: beyond labels": [0, last + 1],
            "error: before labels": [-1, 0],
            "error: fewer labels": [0],
        }.items():
            calls[name] = ("conditional", {**seeds(9, -3), "label": ("int32", labels)})
    if "encode" in served:
        video = clip_for(metadata)
        calls["encode"] = ("encode", {"video": ("uint8", video.tolist())})
        calls["error: encode nothing"] = ("encode", {"video": ("uint8", video[:0])})
        if metadata["video"]["free_length"]:
            calls["error: encode no frames"] = ("encode", {"video": ("uint8", video[:, :0])})
    for call in TWINS & calls.keys():
        endpoint, inputs = calls[call]
        calls[f"jpeg {call}"] = (f"{endpoint}_jpeg", inputs)
    return {name: (endpoint, {k: (d, np.asarray(v).tolist(), np.shape(v)) for k, (d, v) in inputs.items()})
            for name, (endpoint, inputs) in calls.items()}  # fmt: skip


TWINS = {"seed 9", "decode", "interpolate", "lookup", "exchange", "short"}  # calls that are also asked for as JPEG


def clip_for(metadata: dict) -> np.ndarray:
    """A uint8 video that fits the model's encoder, (1, T, H, W, 3)."""
    shape = (metadata["video"]["num_frames"], *metadata["video"]["shape"][2:])
    return np.random.default_rng(3).integers(0, 256, (1, *shape), np.uint8)


@pytest.fixture(scope="module")
def all_served(request, tmp_path_factory) -> dict[str, Served]:
    """Every system that a test of this run asks for, exported here and answered by one process."""
    wanted = {item.callspec.params["served"] for item in request.session.items if "served" in item.fixturenames}
    root = tmp_path_factory.mktemp("exports")
    ready = {"navsynth_exchange_joint": "exported", "free_length": "free_length"}
    models, calls = {}, {}
    for name in sorted(wanted):
        if name in ready:
            source = request.getfixturevalue(ready[name])
            models[name] = source.model
            (root / name).symlink_to(source.base)
        else:
            (system,) = (system for system in SYSTEMS if system.name == name)
            models[name] = system.build()
            vivid(models[name])
            assert saved_model.export_model(models[name], root / name, {"step": 3}) == root / name / "1"
        calls[name] = calls_of(models[name], json.loads((root / name / "1" / "metadata.json").read_text()))
    (root / "calls.json").write_text(json.dumps(calls))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", SERVER, str(root)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers, listed = json.loads((root / "answers.json").read_text())
    with np.load(root / "answers.npz") as arrays:
        outputs = dict(arrays)
    return {
        name: Served(
            model,
            root / name,
            listed[name],
            answers[name],
            {key.partition("/")[2]: value for key, value in outputs.items() if key.startswith(f"{name}/")},
        )
        for name, model in models.items()
    }


@pytest.fixture(params=SERVED)
def served(request, all_served) -> Served:
    return all_served[request.param]


# ---------------------------------------------------------------- the same frames
def test_decode_gives_the_live_frames(served):
    assert_same_frames(served.video("decode"), served.model.decode(served.model.sample_latents(3, seed=5)))


def test_lookup_gives_the_live_frames(served):
    if "lookup" not in served.endpoints:
        pytest.skip("this system learns no codes")
    last = served.metadata["endpoints"]["lookup"]["inputs"]["video_id"]["range"][1]
    latents = served.model.lookup(np.array([last, 0, 2], np.int32))
    assert_same_frames(served.video("lookup"), served.model.decode(latents))


def test_labels_give_the_live_frames(served):
    if not served.model.num_labels:
        assert "conditional" not in served.endpoints
        pytest.skip("this system is unconditional")
    last = served.metadata["endpoints"]["conditional"]["inputs"]["label"]["range"][1]
    assert last == served.model.num_labels - 1
    for row, (seed, label) in zip(served.video("conditional"), ((9, last), (-3, 0)), strict=True):
        latents = served.model.sample_latents(1, seed=seed, labels=[label])
        assert_same_frames(row[None], served.model.decode(latents))


def test_exchange_gives_the_live_frames(served):
    if "exchange" not in served.endpoints:
        pytest.skip("this system has no exchange")
    last = {name: e["range"][1] for name, e in served.metadata["endpoints"]["exchange"]["inputs"].items()}
    latents = served.model.exchange(np.array([last["identity"], 0], np.int32), np.array([0, last["action"]], np.int32))
    assert_same_frames(served.video("exchange"), served.model.decode(latents))


def test_generate_gives_the_live_frames(served):
    if "generate" not in served.endpoints:
        pytest.skip("this system has one length")
    most = served.metadata["limits"]["num_frames"]
    for call, length in (("short", 1), ("long", most)):
        assert served.video(call).shape[:2] == (2, length)
        assert_same_frames(served.video(call)[:1], served.model.generate(1, length, seed=9))


def test_encode_gives_the_live_latents(served):
    if "encode" not in served.endpoints:
        pytest.skip("this system has no encoder")
    live = served.model.encode(clip_for(served.metadata).astype(np.float32) / 127.5 - 1.0)
    assert served.answers["encode"] == sorted(live)
    for name, value in live.items():
        np.testing.assert_allclose(served.outputs[f"encode/{name}"], value, atol=1e-5)


def test_interpolation_runs_from_one_seed_to_the_other(served):
    video = served.video("interpolate")
    assert len(video) == 4
    assert_same_frames(video[:1], served.model.generate(1, seed=9))
    ends = [served.model.sample_latents(1, seed=seed) for seed in (9, 2**40)]
    between = {}
    for name, first in ends[0].items():
        is_float = "float" in first.dtype.name
        between[name] = first + (ends[1][name] - first) / 3 if is_float else first
    assert_same_frames(video[1:2], served.model.decode(between))


def test_jpeg_frames_are_those_frames(served):
    twins = {name: answer for name, answer in served.answers.items() if name.startswith("jpeg ")}
    assert {name.removeprefix("jpeg ") for name in twins} == TWINS & served.answers.keys()
    for name, answer in twins.items():
        assert answer == ["frames_bytes"], answer
        exact = served.video(name.removeprefix("jpeg "))
        files = served.outputs[f"{name}/frames_bytes"]
        shown = np.array([[np.asarray(Image.open(io.BytesIO(file.tobytes()))) for file in row] for row in files])
        assert shown.shape == exact.shape
        # blocks of 8x8 of noise are the worst case for JPEG; no frame comes near its neighbour's
        assert np.abs(shown.astype(int) - exact).mean() < 12


def test_a_seed_gives_the_live_video(served):
    assert_same_frames(served.video("seed 9"), served.model.generate(1, seed=9))


@pytest.mark.parametrize("system", one_of_each_class())
@pytest.mark.long
def test_every_system_makes_its_videos_from_seeds_and_latents_alone(system):
    """Without a detour over a file: what the contract gives is enough for the endpoints."""
    model = system.build()
    vivid(model)
    made = endpoints.make(model)
    functions = made.functions
    assert_same_frames(
        functions["serving_default"](np.array([9], np.int64))["video"].numpy(), model.generate(1, seed=9)
    )
    if "generate" in functions:
        video = functions["generate"](np.array([9], np.int64), np.int32(7))["video"].numpy()
        assert_same_frames(video, model.generate(1, 7, seed=9))
    # a one-hot code of a label that does not exist is all zeros: a wrong video, and no error
    labels = {name for name, entry in model.latent_spec.items() if entry.dtype == "int32"}
    assert set(made.ranges.get("decode", {})) == labels
    latents = {name: np.asarray(value) for name, value in model.sample_latents(2, seed=5).items()}
    for name in labels:
        low, high = made.ranges["decode"][name]
        assert (low, high) == (0, NUM_ACTIONS - 1)
        for value in (low - 1, high + 1):
            given = {**latents, name: np.array([low, value], np.int32)}
            with pytest.raises(tf.errors.InvalidArgumentError, match=rf"{name} must lie in 0\.\.{high}"):
                functions["decode"](*(given[key] for key in model.latent_spec))


# ---------------------------------------------------------------- seeds
def test_a_batch_of_seeds_equals_single_seeds(served):
    together = served.video("seeds")
    assert len(together) == 4
    for row, seed in zip(together, (*SEEDS, 9), strict=True):
        assert_same_pixels(row, served.video(f"seed {seed}")[0])


@pytest.mark.parametrize("system", one_of_each_class())
def test_latents_of_a_seed_are_the_same_in_every_batch(system):
    """Bit for bit: a video that shows the bytes of its latents."""
    model = system.build()

    def show(latents):
        rows = [tf.reshape(tf.bitcast(value, tf.uint8), (tf.shape(value)[0], -1)) for value in latents.values()]
        video = tf.reshape(tf.concat(rows, 1), (tf.shape(rows[0])[0], -1, 1, 1, 1))
        return tf.cast(video, tf.float32) / 127.5 - 1.0

    model.decode = show
    serve = endpoints.make(model).functions["serving_default"]
    together = serve(np.array([*SEEDS, 4]))["video"].numpy()
    alone = [serve(np.array([seed]))["video"].numpy() for seed in (*SEEDS, 4)]
    assert not np.array_equal(together[0], together[1])
    np.testing.assert_array_equal(np.concatenate(alone), together)


def test_other_seeds_give_other_videos(served):
    assert np.ptp(served.video("seeds").astype(int), axis=0).max() > 50


# ---------------------------------------------------------------- inputs
def test_endpoints_are_those_of_the_contract(served):
    model, spec = served.model, served.model.latent_spec
    row = ["int32", [None]]
    expected = {
        "serving_default": {"seed": ["int64", [None]]},
        "decode": {name: [entry.dtype, [None, *entry.shape]] for name, entry in spec.items()},
        "interpolate": {"a": ["int64", []], "b": ["int64", []], "num_steps": ["int32", []]},
    }
    if model.has_lookup:
        expected["lookup"] = {"video_id": row}
    if model.exchange_spec:
        expected["exchange"] = {"identity": row, "action": row}
    if model.num_labels:
        expected["conditional"] = {"seed": ["int64", [None]], "label": row}
    if any(None in entry.shape for entry in spec.values()):
        expected["generate"] = {"seed": ["int64", [None]], "num_frames": ["int32", []]}
    twins = {f"{name}_jpeg": inputs for name, inputs in expected.items()}
    encode = served.endpoints.pop("encode", None)
    assert served.endpoints == {**expected, **twins}
    assert (encode is not None) == model.has_encoder
    owners = {
        name: entry.get("of")
        for name, entry in served.metadata["endpoints"].get("exchange", {"inputs": {}})["inputs"].items()
    }
    assert owners == {name: choice.of for name, choice in model.exchange_spec.items()}


def test_wrong_inputs_are_errors_and_never_frames(served):
    wrong = {name: answer for name, answer in served.answers.items() if name.startswith("error: ")}
    assert len(wrong) >= 6
    for name, answer in wrong.items():
        missing = "without" in name or "unnamed" in name
        assert str(answer).startswith("TypeError" if missing else "InvalidArgumentError"), (name, answer)
    failed = {name for name, answer in served.answers.items() if isinstance(answer, str)}
    assert failed == set(wrong)


def test_errors_name_the_input_and_its_range(served):
    steps = served.metadata["limits"]["num_steps"]
    assert f"num_steps must lie in 2..{steps}" in served.error("error: too many steps")
    assert "must be finite" in served.error("error: not a number")
    for call, endpoint, column in (
        ("error: beyond", "lookup", "video_id"),
        ("error: before", "lookup", "video_id"),
        ("error: beyond identities", "exchange", "identity"),
        ("error: before actions", "exchange", "action"),
        ("error: no frames", "generate", "num_frames"),
    ):
        if endpoint in served.metadata["endpoints"]:
            low, high = served.metadata["endpoints"][endpoint]["inputs"][column]["range"]
            assert f"{column} must lie in {low}..{high}" in served.error(call)


def test_decode_draws_nothing(served):
    """Other runtimes lack TensorFlow's random operations."""
    from tensorflow.core.protobuf import saved_model_pb2

    stored = saved_model_pb2.SavedModel.FromString((served.folder / "1" / "saved_model.pb").read_bytes())
    library = {function.signature.name: function for function in stored.meta_graphs[0].graph_def.library.function}

    def operations(name, seen):
        if name in seen:
            return set()
        seen.add(name)
        found = set()
        for node in library[name].node_def:
            found.add(node.op)
            for value in node.attr.values():
                for called in [value.func.name, *(f.name for f in value.list.func)]:
                    found |= operations(called, seen) if called in library else set()
        return found

    def of_endpoint(endpoint):
        # by its first input: the placeholder is called <endpoint>_<input>
        placeholder = stored.meta_graphs[0].signature_def[endpoint].outputs["video"].name.partition(":")[0]
        (node,) = (n for n in stored.meta_graphs[0].graph_def.node if n.name == placeholder)
        return operations(node.attr["f"].func.name, set())

    assert [op for op in of_endpoint("decode") if "Random" in op] == []
    assert [op for op in of_endpoint("serving_default") if "Random" in op]


# ---------------------------------------------------------------- without Python
@pytest.fixture(scope="module")
def c_client(tmp_path_factory) -> pathlib.Path:
    compiler = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if not compiler:
        pytest.skip("needs a C compiler")
    library = pathlib.Path(tf.sysconfig.get_lib())
    names = ("libtensorflow_cc.so.2", "libtensorflow_framework.so.2")
    if not all((library / name).is_file() for name in names):
        pytest.skip(f"this TensorFlow has no {' and '.join(names)}")
    program = tmp_path_factory.mktemp("client") / "client"
    source = pathlib.Path(__file__).with_name("client.c")
    link = [*(f"-l:{name}" for name in names), f"-L{library}", f"-Wl,-rpath,{library}"]
    if shutil.which("ld.gold"):
        link.append("-fuse-ld=gold")  # reads the library's million symbols in a quarter of the time
    command = [compiler, "-std=c99", "-O1", "-Wall", "-Werror", f"-I{tf.sysconfig.get_include()}", str(source), *link]
    done = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def call_c_client(program, version, endpoint, tmp_path, **inputs) -> tuple[int, str, bytes]:
    """(status, message, bytes of the video) of one call."""
    from tensorflow.core.protobuf import saved_model_pb2

    stored = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    signature = stored.meta_graphs[0].signature_def[endpoint]
    operation, _, index = signature.outputs["video"].name.partition(":")
    arguments = [str(version), operation, index, str(tmp_path / "result")]
    for name, value in inputs.items():
        value.tofile(tmp_path / name)
        entry = signature.inputs[name]
        assert entry.dtype == tf.as_dtype(value.dtype).as_datatype_enum
        arguments += [entry.name.partition(":")[0], str(entry.dtype), str(tmp_path / name), str(value.ndim)]
        arguments += [str(size) for size in value.shape]
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=120, check=False)
    result = tmp_path / "result"
    return done.returncode, done.stderr, result.read_bytes() if result.exists() else b""


@pytest.mark.long
def test_a_c_program_gets_the_same_frames_bit_for_bit(c_client, exported, tmp_path):
    loaded = tf.saved_model.load(str(exported.version))
    seeds = np.array([9, 2**40, -3], np.int64)
    expected = loaded.signatures["serving_default"](seed=tf.constant(seeds))["video"].numpy()
    status, message, data = call_c_client(c_client, exported.version, "serving_default", tmp_path, seed=seeds)
    assert status == 0, message
    assert data == expected.tobytes()
    assert np.ptp(expected.astype(int), axis=0).max() > 50


@pytest.mark.long
def test_a_c_program_gets_invalid_argument_for_an_id_out_of_range(c_client, exported, tmp_path):
    ids = {"identity": np.array([0], np.int32), "action": np.array([2], np.int32)}
    status, message, data = call_c_client(c_client, exported.version, "exchange", tmp_path, **ids)
    assert status == 3  # TF_INVALID_ARGUMENT
    assert "action must lie in 0..1" in message
    assert data == b""


# ---------------------------------------------------------------- files
def test_metadata_says_what_is_served(served):
    metadata = served.metadata
    spec = served.model.latent_spec
    video = np.asarray(served.model.generate(1, seed=0))
    assert metadata["step"] == 3
    assert metadata["video"]["shape"] == ["B", "T", *video.shape[2:]]
    assert metadata["video"]["num_frames"] == video.shape[1]
    assert metadata["video"]["range"] == [0, 255] and metadata["video"]["dtype"] == "uint8"
    for name, entry in spec.items():
        told = metadata["latents"][name]
        assert (told["shape"], told["dtype"], told["prior"]) == (list(entry.shape), entry.dtype, entry.prior)
    inputs = {
        name: {key: [entry["dtype"], entry["shape"]] for key, entry in endpoint["inputs"].items()}
        for name, endpoint in metadata["endpoints"].items()
        if name != "encode"
    }
    assert inputs == {name: value for name, value in served.endpoints.items() if name != "encode"}


def test_digests_are_of_the_files(exported):
    digests = exported.metadata["files"]
    found = saved_model.digests(exported.version)
    assert set(found) - set(digests) == {"metadata.json", "README.md"}
    assert digests.items() <= found.items()
    assert {"saved_model.pb", "sample.gif", "variables/variables.index"} <= digests.keys()


def test_only_what_is_served_is_stored(exported):
    """Optimizers, slots and networks that only train would be dead weight."""
    variables = dict(tf.train.list_variables(str(exported.version / "variables" / "variables")))
    stored = sorted(shape for name, shape in variables.items() if name.startswith("variables_read/"))
    model = exported.model
    networks = [*model.rnn.weights, *model.generator.weights, model.static.rows, model.transient.rows]
    assert stored == sorted(list(variable.shape) for variable in networks)


def test_the_sample_is_a_gif_of_new_videos(exported):
    from tfvidgen import visualize

    with Image.open(exported.version / "sample.gif") as image:
        assert image.n_frames >= 2
        assert image.size[0] >= 2 * exported.metadata["video"]["shape"][3]
    grid = visualize.grid_video(np.concatenate([to_uint8(exported.model.generate(1, seed=i)) for i in range(4)]))
    assert grid.shape[1:3] == image.size[::-1]


def test_the_card_describes_the_model(exported):
    card = (exported.version / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: keras\n")
    for name in exported.metadata["endpoints"]:
        assert f"`{name}`" in card
    assert "in 0..5" in card  # the ids that lookup takes
    assert "No metrics were computed" in card


def test_the_card_names_what_ids_are_of(exported, run):
    labels = saved_model.run_metadata(run.config.run_dir, 7)["labels"]
    names = list(runs.load_data(run.config).trained.names)
    assert labels["video_names"] == names and len(names) == 4
    data = {"num_videos": 4, "source": "actors", "fps": 8.0}
    text = card.model_card({**exported.metadata, "data": data, "labels": labels})
    assert f"Video names: 0 `{names[0]}`, 1 `{names[1]}`, " in text and "Action names: 0 " in text
    labels = {"video_names": [f"{i}.mp4" for i in range(card.MAX_NAMES + 7)]}
    text = card.model_card({**exported.metadata, "data": data, "labels": labels})
    assert text.count(".mp4") == card.MAX_NAMES and "99 `99.mp4`, 7 more in `metadata.json`." in text


def test_only_the_version_and_the_server_files_are_left(exported):
    assert sorted(path.name for path in exported.base.iterdir()) == ["1", "serving"]


def test_a_failed_export_leaves_nothing_behind(free_length, tmp_path):
    (tmp_path / "1").mkdir()
    with pytest.raises(TypeError, match="JSON"):
        saved_model.export_model(free_length.model, tmp_path, {"date": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert not list((tmp_path / "1").iterdir())


@pytest.mark.long
@pytest.mark.parametrize("name", ["lr[1e-3]", "back\\slash", os.fsdecode(b"caf\xe9")])
def test_any_path_is_exported_to_and_loaded_from(free_length, tmp_path, name):
    folder = saved_model.export_model(free_length.model, tmp_path / name, name="m")
    version = runtime.Version(folder)
    video = version.endpoint("").run({"seed": np.array([7], np.int64)})["video"]
    assert_same_frames(video, free_length.model.generate(1, seed=7))
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["1", "serving"]
    assert serving.read_warmup(folder) or not serving.has_stubs()


def test_any_path_is_served_from(free_length, tmp_path):
    base = tmp_path / os.fsdecode(b"lr[1e-3] caf\xe9")
    base.mkdir()
    shutil.copytree(free_length.version, base / "1")
    server = start_server(base)
    asking = client.connect(f"http://127.0.0.1:{server.rest_port}", "m")
    try:
        found = asking.predict("serving_default", {"seed": [7]})
    finally:
        asking.close()
        server.stop()
    assert_same_frames(found["video"], free_length.model.generate(1, seed=7))


STUCK_EXPORT = """
import sys, time
from export import card, saved_model
from tests.export import free_length

def stuck(*arguments):
    print("writes", flush=True)
    time.sleep(1000)

card.model_card = stuck  # the last file of an export
saved_model.export_model(free_length.build(), sys.argv[1], name="m")
"""


@pytest.mark.slow
def test_the_next_export_sweeps_what_a_killed_one_left_but_no_living_one(free_length, tmp_path):
    (tmp_path / ".export-0ld_left" / "model").mkdir(parents=True)  # as version 0.1 left it
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2]), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", STUCK_EXPORT, tmp_path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout.readline() == "writes\n"
        (living,) = tmp_path.glob(".export-*")  # the old one is gone
        saved_model.export_model(free_length.model, tmp_path, name="m")
        assert (living / "content" / "model" / "saved_model.pb").is_file()
    finally:
        process.kill()
        process.communicate()
    assert {path.name for path in tmp_path.iterdir()} == {"1", "serving", living.name}
    saved_model.export_model(free_length.model, tmp_path, name="m")
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "serving"}


def test_limits_are_the_callers(free_length):
    made = endpoints.make(free_length.model, max_num_frames=5, max_num_steps=3)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"num_frames must lie in 1\.\.5"):
        made.functions["generate"](np.zeros(1, np.int64), np.int32(6))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"num_steps must lie in 2\.\.3"):
        made.functions["interpolate"](np.int64(0), np.int64(1), np.int32(4))


# ---------------------------------------------------------------- from a run
def test_a_run_is_exported_with_its_description_as_the_next_version(run, capsys):
    config, model = run.config, run.model
    base = pathlib.Path(config.run_dir) / "export"
    for name in ("1", "9", "10", "notes", "\u00b2"):  # a superscript is a digit to Python, and no number
        (base / name).mkdir(parents=True)
        (base / name / "kept").touch()
    assert saved_model.main([f"--run_dir={config.run_dir}"]) == 0
    folder = base / "11"
    assert capsys.readouterr().out.strip().endswith(f"exported {folder}")
    assert {path.name for path in base.iterdir()} == {"1", "9", "10", "11", "notes", "\u00b2", "serving"}
    assert all([path.name for path in (base / name).iterdir()] == ["kept"] for name in ("1", "9", "10", "notes"))
    metadata, description = json.loads((folder / "metadata.json").read_text()), runs.read(config.run_dir)
    assert metadata["step"] == 7
    assert metadata["name"] == metadata["system"] == "navsynth"
    assert metadata["config"].items() <= description["config"].items() and metadata["config"]["width"] == 4
    assert metadata["data"] == description["data"] and metadata["versions"] == description["versions"]
    assert metadata["labels"] == description["labels"]
    assert {name: len(labels) for name, labels in metadata["labels"].items()} == {
        "identity_names": 2,
        "action_names": 2,
        "video_names": 4,
    }
    assert "Identity names: 0 " in (folder / "README.md").read_text()
    assert metadata["metrics"]["trained_videos"]["psnr"] == 31.25
    assert "| `trained_videos.psnr` | 31.25 |" in (folder / "README.md").read_text()
    lookup = tf.saved_model.load(str(folder)).signatures["lookup"]
    ids = np.array([3, 1], np.int32)
    assert_same_frames(lookup(video_id=tf.constant(ids))["video"].numpy(), model.decode(model.lookup(ids)))


@pytest.mark.long
def test_a_path_that_is_no_text_can_be_printed(run, tmp_path):
    out = tmp_path / os.fsdecode(b"caf\xe9")
    command = [sys.executable, "-m", "export.saved_model", f"--run_dir={run.config.run_dir}", f"--out={out}"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
        "PYTHONIOENCODING": "utf-8:strict",
    }
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(rb"caf\udce9/1") and (out / "1" / "saved_model.pb").is_file()


def test_bad_runs_are_one_message(tmp_path, capsys):
    assert saved_model.main([]) == 2
    assert "--run_dir is missing" in capsys.readouterr().err
    assert saved_model.main([f"--run_dir={tmp_path}"]) == 1
    assert "is not a run folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
