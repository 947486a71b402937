"""Warm-up requests and configuration files."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from export import saved_model, serving
from tests.export.conftest import Exported


@pytest.fixture(params=["exported", "free_length"])
def model(request) -> Exported:
    return request.getfixturevalue(request.param)


# ---------------------------------------------------------------- warm-up
@pytest.fixture
def stubs():
    return pytest.importorskip("tensorflow_serving.apis", reason="needs tensorflow-serving-api (extra: serving)")


@pytest.mark.long
def test_the_warm_up_file_is_replayed_through_the_loader(free_length, stubs):
    """By TensorFlow Serving's messages, and by the loader that reads graphs only, as TensorFlow Serving does."""
    from tensorflow_serving.apis import prediction_log_pb2

    path = free_length.version / "assets.extra" / "tf_serving_warmup_requests"
    replayed = set()
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(free_length.version))
        for record in tf.compat.v1.io.tf_record_iterator(str(path)):
            request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
            assert request.model_spec.name == free_length.metadata["name"]
            signature = loaded.signature_def[request.model_spec.signature_name]
            assert set(signature.inputs) == set(request.inputs)
            fed = {signature.inputs[name].name: tf.make_ndarray(value) for name, value in request.inputs.items()}
            outputs = session.run({name: entry.name for name, entry in signature.outputs.items()}, fed)
            told = free_length.metadata["endpoints"][request.model_spec.signature_name]["outputs"]
            assert all(value.ndim == len(told[name]["shape"]) for name, value in outputs.items())
            replayed.add(request.model_spec.signature_name)
    # those with scalar inputs would keep TensorFlow Serving from loading the model when it batches
    scalar = {"generate", "generate_jpeg", "interpolate", "interpolate_jpeg"}
    assert replayed == set(free_length.metadata["endpoints"]) - scalar
    assert free_length.metadata["warmup_requests"] == len(replayed) <= 1000


def test_warm_up_requests_come_back_as_arrays(model, stubs):
    requests = dict(serving.read_warmup(model.version))
    np.testing.assert_array_equal(requests["serving_default"]["seed"], np.zeros(1, np.int64))
    assert all(value.ndim for inputs in requests.values() for value in inputs.values())
    for name, entry in model.metadata["latents"].items():
        value = requests["decode"][name]
        assert value.dtype == entry["dtype"] and value.ndim == 1 + len(entry["shape"])


def test_the_development_server_calls_every_endpoint_before_it_serves(free_length, monkeypatch):
    from export.server import runtime

    called, run = [], runtime.Endpoint.run
    monkeypatch.setattr(runtime.Endpoint, "run", lambda self, inputs: called.append(self.name) or run(self, inputs))
    version = runtime.Version(free_length.version)
    assert sorted(called) == sorted(version.endpoints) == sorted(free_length.metadata["endpoints"])
    assert dict(serving.first_requests(free_length.version))["interpolate"]["num_steps"] == 2


def test_without_stubs_an_export_says_what_is_missing(exported, tmp_path):
    """In a process that cannot import them, as after a plain `pip install tfvidgen`."""
    code = f"""
import importlib.util, json, pathlib, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "tensorflow_serving" else find(name, *rest)
from export import serving
metadata = json.loads(pathlib.Path({str(exported.version)!r}, "metadata.json").read_text())
folder = pathlib.Path({str(tmp_path)!r})
print(serving.write_warmup(folder, "m", metadata), serving.read_warmup({str(exported.version)!r}), serving.STUBS_MISSING)
assert "tensorflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=2)[:2] == ["0", "[]"]
    assert "pip install 'tfvidgen[serving]'" in done.stdout
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- configuration files
def parse(text: str, fields: dict, name: str = "Config"):
    """Parses the text form of a protocol buffer whose classes are not installed.

    `fields` maps a field's name to int, bool, str, or the fields of a message; a list of one is repeated.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package=name, syntax="proto2")
    kinds = {int: 3, bool: 8, str: 9}

    def add(message_name, fields):
        message = file.message_type.add(name=message_name)
        for number, (key, kind) in enumerate(fields.items(), 1):
            repeated = isinstance(kind, list)
            kind = kind[0] if repeated else kind
            field = message.field.add(name=key, number=number, label=3 if repeated else 1)
            if isinstance(kind, dict):
                child = f"{message_name}_{key}"
                add(child, kind)
                field.type, field.type_name = 11, f".{name}.{child}"
            else:
                field.type = kinds[kind]

    add("Root", fields)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return text_format.Parse(text, message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{name}.Root"))())


def config_text(model: Exported, name: str) -> str:
    return (model.base / "serving" / name).read_text()


def test_models_config_names_the_folder_that_compose_mounts(exported, stubs):
    from tensorflow_serving.config import model_server_config_pb2

    parsed = text_format.Parse(config_text(exported, "models.config"), model_server_config_pb2.ModelServerConfig())
    (config,) = parsed.model_config_list.config
    assert (config.name, config.base_path, config.model_platform) == ("navsynth", "/models/navsynth", "tensorflow")
    assert config.model_version_policy.latest.num_versions == 1
    assert f"..:{config.base_path}:ro" in config_text(exported, "docker-compose.yml")


def test_batching_config_is_of_tf_servings_form(exported):
    value = {"value": int}
    names = ("max_batch_size", "batch_timeout_micros", "num_batch_threads", "max_enqueued_batches")
    parsed = parse(config_text(exported, "batching.config"), dict.fromkeys(names, value))
    assert parsed.max_batch_size.value == serving.MAX_BATCH_SIZE
    assert all(getattr(parsed, name).value > 0 for name in names)


def test_monitoring_config_has_the_path_of_the_development_server(exported):
    from export.server import rest

    parsed = parse(config_text(exported, "monitoring.config"), {"prometheus_config": {"enable": bool, "path": str}})
    assert parsed.prometheus_config.enable and parsed.prometheus_config.path == rest.METRICS_PATH


TRITON_TYPES = {"TYPE_FP32": "tensor(float)", "TYPE_INT32": "tensor(int32)", "TYPE_INT64": "tensor(int64)"}


def triton_config(model: Exported):
    tensor = {"name": str, "data_type": str, "dims": [int], "reshape": {"shape": [int]}}
    text = config_text(model, f"triton/{model.metadata['name']}/config.pbtxt")
    # enumerations, which the parser below has no names for
    text = re.sub(r"data_type: (TYPE_\w+)", r'data_type: "\1"', text)
    fields = {
        **{"name": str, "platform": str, "max_batch_size": int, "input": [tensor], "output": [tensor]},
        **{"dynamic_batching": {"unused": int}},
    }
    return parse(text, fields)


def test_triton_config_is_of_the_onnx_backend(model):
    parsed = triton_config(model)
    assert (parsed.name, parsed.platform) == (model.metadata["name"], "onnxruntime_onnx")
    assert {tensor.name for tensor in parsed.input} == set(model.metadata["endpoints"]["decode"]["inputs"])


def test_triton_config_has_the_tensors_of_the_onnx_graph(model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (extra: formats)")
    pytest.importorskip("tf2onnx", reason="needs tf2onnx (extra: formats)")
    from export import formats

    path, _ = formats.convert(model.model, tmp_path / "1" / "model.onnx")
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    parsed = triton_config(model)
    for described, found in ((parsed.input, session.get_inputs()), (parsed.output, session.get_outputs())):
        graph = {}
        for entry in found:
            batch, *sizes = [size if isinstance(size, int) else -1 for size in entry.shape]
            assert batch == -1  # as max_batch_size asks for
            graph[entry.name] = (entry.type, sizes)
        assert graph == {
            tensor.name: (TRITON_TYPES[tensor.data_type], [] if tensor.HasField("reshape") else list(tensor.dims))
            for tensor in described
        }


def test_triton_config_is_tritons_own(exported):
    """Where Triton's message classes are installed, they have the last word."""
    triton = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]")
    parsed = text_format.Parse(config_text(exported, "triton/navsynth/config.pbtxt"), triton.ModelConfig())
    assert parsed.input[0].data_type == parsed.output[0].data_type == triton.TYPE_FP32


def test_compose_pins_the_image_and_stays_on_this_machine(exported):
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    content = yaml.safe_load(config_text(exported, "docker-compose.yml"))
    serving_, batching = content["services"]["serving"], content["services"]["batching"]
    assert serving_["image"] == batching["image"] == f"tensorflow/serving:{serving.TF_SERVING_TAG}"
    assert all(port.startswith("127.0.0.1:") for port in serving_["ports"])
    mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in serving_["volumes"]}
    for command in (serving_["command"], batching["command"]):
        files = [value.partition("=")[2] for value in command if "=/" in value]
        assert files and all((exported.base / "serving" / file.removeprefix("/config/")).is_file() for file in files)
    assert mounted["/config"] == "."
    assert "--enable_batching=true" in batching["command"] and "--enable_batching=true" not in serving_["command"]


def test_kserve_names_the_model_as_kubernetes_allows(exported):
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    content = yaml.safe_load(config_text(exported, "kserve.yaml"))
    assert (content["apiVersion"], content["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    model = content["spec"]["predictor"]["model"]
    assert model["modelFormat"]["name"] == "tensorflow" and model["runtimeVersion"] == serving.TF_SERVING_TAG
    assert model["storageUri"] == "pvc://models/navsynth"
    named = yaml.safe_load(serving.configs({**exported.metadata, "name": "My_Model.v2"})["kserve.yaml"])
    assert named["metadata"]["name"] == "my-model-v2"
    for name in ("7", "1e3", "true", "_", "a" * 100, "x" * 35 + ".y", "2.-"):
        label = yaml.safe_load(f'name: "{serving.dns_name(name)}"')["name"]
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,34}[a-z0-9])?", label), (name, label)


def test_edited_files_are_kept(exported, tmp_path):
    written = serving.write_configs(tmp_path, exported.metadata)
    assert {path.relative_to(tmp_path / "serving").as_posix() for path in written} == set(
        serving.configs(exported.metadata)
    )
    edited = tmp_path / "serving" / "batching.config"
    edited.write_text("mine")
    (tmp_path / "serving" / "models.config").unlink()
    again = serving.write_configs(tmp_path, exported.metadata)
    assert [path.name for path in again] == ["models.config"]
    assert edited.read_text() == "mine"


def test_a_config_that_a_killed_export_began_is_written_whole(exported, tmp_path, monkeypatch):
    """A file is there whole or not at all, so that what is kept is what was written, or edited."""
    write = pathlib.Path.write_text

    def killed(path, text, **options):
        write(path, text[: len(text) // 2], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(pathlib.Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        serving.write_configs(tmp_path, exported.metadata)
    monkeypatch.undo()
    serving.write_configs(tmp_path, exported.metadata)
    for name, text in serving.configs(exported.metadata).items():
        assert (tmp_path / "serving" / name).read_text() == text


def test_a_folder_named_by_other_digits_is_no_version():
    names = {"1": 1, "007": 7, "\u00b2": None, "\u0663": None, "1 ": None, "-1": None, "": None, "9" * 5000: None}
    assert {name: serving.version_number(name) for name in names} == names


def test_a_model_is_called_by_its_newest_metadata(tmp_path):
    base = tmp_path / "folder"
    base.mkdir()
    assert serving.model_name(base) == "folder"
    for version, text in (
        ("1", '{"name": "one"}'),
        ("9", '{"name": "nine"}'),
        ("10", '{"name": '),
        ("11", '{"name": "../x"}'),
    ):
        (base / version).mkdir()
        (base / version / "metadata.json").write_text(text)
    (base / "\u00b2").mkdir()
    assert serving.model_name(base) == "nine"


def test_a_name_that_breaks_urls_is_refused_before_anything_is_written(exported, tmp_path):
    for name in ("a/b", "a b", "a:predict", "..", ".", "-rf", "a\n", "\u00b2", "a" * 101, "x'; y"):
        with pytest.raises(ValueError, match="pass --name"):
            saved_model.export_model(exported.model, tmp_path, name=name)
    assert not list(tmp_path.iterdir())
