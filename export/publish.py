"""Builds a folder for publishing a model: card, weights, SavedModel, samples, metrics, licence and SHA-256 sums.

Everything is built offline. Uploading is left to the hub's own tool and your own credentials: the command is printed, and
run only with --upload.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import stat
import subprocess
import sys
import types
import warnings
from typing import BinaryIO

from tfvidgen import storage
from trainers import cli
from trainers.cli import option

TARGETS = ("dir", "hf", "kaggle")
SUMS = "SHA256SUMS"
_SPDX = re.compile(r"[A-Za-z][A-Za-z0-9.+-]*")
_REPO = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_KAGGLE_LICENSES = {
    "apache-2.0": "Apache 2.0"
}  # Kaggle's own name, as its documentation gives it; others go as they are
_SAMPLES = (
    "new.png",
    "new.gif",
    "board.png",
    "board.gif",
    "board.mp4",
)  # made by the model; held_out.png shows its data
_FILES = """\
* `saved_model/1/`: the SavedModel, with `metadata.json`; serve `saved_model/` with TensorFlow Serving
* `model.weights.h5` and `config.json`: weights and settings, for use with tfvidgen (below)
* `evaluation.json`, `samples/`: metrics, and samples of what it generates
* `SHA256SUMS`: check the download with `sha256sum -c SHA256SUMS`

```python
import json
from huggingface_hub import snapshot_download  # or any other download of this folder

from tfvidgen import runs

folder = snapshot_download("{repo}")
model = runs.build_model(json.load(open(f"{{folder}}/config.json")))
model.load_weights(f"{{folder}}/model.weights.h5")
videos = model.generate(4, seed=0)  # float32 (4, T, H, W, 3) in [-1, 1]
```"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings for publishing a run."""

    run_dir: str = option("", "The run to publish.")
    out: str = option("", "Folder to create; must be empty if it exists.")
    to: str = option("dir", "dir: the folder only; hf: Hugging Face; kaggle: Kaggle Models.", TARGETS)
    repo: str = option("", "hf: user/name. kaggle: user/model/tensorFlow2/variation.")
    license: str = option("", "SPDX identifier of the weights' licence, e.g. apache-2.0. It is yours to choose.")
    license_file: str = option("", "File with the licence text; not needed for apache-2.0.")
    upload: bool = option(False, "Upload the folder with the hub's own tool and your credentials.")


def build(
    run_dir: str | os.PathLike,
    out: str | os.PathLike,
    license: str,
    license_file: str = "",
    repo: str = "",
) -> pathlib.Path:
    """Creates the folder atomically and returns it.

    It holds only the run settings that `export.public` allows: no path, host, user or command line.

    Raises:
        ValueError: If `out` is not empty, the licence's text is not known, `license` or `repo` are not of their form, or a
            sample is a link: what it points to may be anything of this machine.
    """
    from export import card, public, saved_model
    from trainers import runs

    run_dir, out = pathlib.Path(run_dir), pathlib.Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder: remove it, or name another --out.")
    text = _license_text(license, license_file)
    if repo:
        _check_repo(repo)
    samples = [path for name in _SAMPLES if os.path.lexists(path := run_dir / name)]
    for path in samples:
        _open_file(path).close()
    model, step = runs.load_model(run_dir)
    metadata, description = saved_model.run_metadata(run_dir, step), runs.read(run_dir)
    described = {"config.json": {**public.description(description), "model": public.model(description)}}
    if metadata["metrics"] is not None:
        described["evaluation.json"] = metadata["metrics"]
    with storage.whole_folder(out) as temporary:
        version = saved_model.export_model(model, temporary / "saved_model", metadata)
        with warnings.catch_warnings():
            # Keras 3.15 reads its variables by a call that NumPy 2 deprecates.
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            model.save_weights(temporary / "model.weights.h5")
        (temporary / "LICENSE").write_text(text, encoding="utf-8")
        for name, content in described.items():
            storage.write_json(temporary / name, content)
        if samples:
            (temporary / "samples").mkdir()
            for path in samples:
                with _open_file(path) as source, (temporary / "samples" / path.name).open("xb") as copy:
                    shutil.copyfileobj(source, copy)
        shutil.copy(version / "sample.gif", temporary / "sample.gif")
        content = json.loads((version / "metadata.json").read_text())
        listed = _FILES.format(repo=repo or "user/name")
        (temporary / "README.md").write_text(
            card.model_card(content, license, listed, "saved_model/1"), encoding="utf-8"
        )
        sums = saved_model.digests(temporary)
        (temporary / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    return out


def _open_file(path: pathlib.Path) -> BinaryIO:
    """Opens a regular file to read it; a link is refused when it is opened, so it cannot be put there in between."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if not path.is_symlink():
            raise
        raise ValueError(
            f"{path} is a link, and what it points to is not published: replace it by a copy, or remove it."
        ) from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise ValueError(f"{path} is not a regular file: remove it, or write the samples again.")
    return os.fdopen(number, "rb")


def _license_text(license: str, license_file: str) -> str:
    if not license:
        raise ValueError(
            "--license is missing: choose the licence of your weights, e.g. --license=apache-2.0. It depends on what they "
            "were trained on."
        )
    if not _SPDX.fullmatch(license):
        raise ValueError(f"--license must be an SPDX identifier, e.g. apache-2.0 or cc-by-4.0. Received {license!r}.")
    if license_file:
        return pathlib.Path(license_file).read_text(encoding="utf-8")
    if license.lower() != "apache-2.0":
        raise ValueError(f"The text of {license!r} is not included: name a file with it, --license_file=LICENSE.")
    source = pathlib.Path(__file__).parents[1] / "LICENSE"
    if source.is_file():
        return source.read_text()
    text = importlib.metadata.distribution("tfvidgen").read_text("licenses/LICENSE")
    if text is None:
        raise ValueError(
            "This installation of tfvidgen lacks the licence text: name a file with it, --license_file=LICENSE."
        )
    return text


def _check_repo(repo: str) -> None:
    if not _REPO.fullmatch(repo):
        raise ValueError(
            f"--repo must be names of letters, digits, '.', '_' and '-', joined by '/'. Received {repo!r}."
        )


def upload_command(to: str, folder: str | os.PathLike, repo: str, license: str = "") -> list[str]:
    """The command that uploads the folder with the hub's own tool, which finds the credentials itself.

    Hugging Face reads the licence from the card; Kaggle is given its name.

    Raises:
        ValueError: If `repo` does not have the hub's form.
    """
    if repo:
        _check_repo(repo)
    parts = repo.split("/")
    if to == "hf":
        if len(parts) != 2:
            raise ValueError(f"--repo must be user/name for Hugging Face. Received {repo!r}.")
        return ["hf", "upload", repo, str(folder), "."]
    if len(parts) != 4:
        raise ValueError(f"--repo must be user/model/tensorFlow2/variation for Kaggle Models. Received {repo!r}.")
    code = "import sys, kagglehub; kagglehub.model_upload(sys.argv[1], sys.argv[2], license_name=sys.argv[3] or None)"
    return [sys.executable, "-c", code, repo, str(folder), _KAGGLE_LICENSES.get(license.lower(), license)]


def _run(config: Config, other: types.SimpleNamespace) -> int:
    if not config.run_dir or not config.out:
        raise cli.UsageError("--run_dir and --out are needed, e.g. --run_dir=runs/mine --out=published/mine.")
    if config.upload and config.to == "dir":
        raise cli.UsageError("--upload needs --to=hf or --to=kaggle.")
    command = upload_command(config.to, config.out, config.repo, config.license) if config.to != "dir" else []
    if config.upload and config.to == "hf" and shutil.which("hf") is None:
        raise ValueError("`hf` is not installed: pip install huggingface_hub, then hf auth login.")
    if config.upload and config.to == "kaggle" and importlib.util.find_spec("kagglehub") is None:
        raise ValueError("`kagglehub` is not installed: pip install kagglehub, then kagglehub.login() in Python.")
    folder = build(config.run_dir, config.out, config.license, config.license_file, config.repo)
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {num_bytes / 1e6:.1f} MB")
    if command and not config.upload:
        print(f"upload it with: {shlex.join(command)}")
    elif command:
        done = subprocess.run(command, check=False)
        if done.returncode:
            raise ValueError(f"The upload exited with status {done.returncode}; the folder is kept: {folder}.")
    return 0


def main(argv=None) -> int:
    return cli.main("export.publish", __doc__, Config, {}, _run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
