"""The whole walk of the README on the real photos and weights, if they can be found."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import OFFLINE, PROJECT, post, run, wait_until_ready

from simplestack import cli
from simplestack.packing import local_server, onnx_export
from simplestack.serving.inference import OnnxModel
from simplestack.training import checkpoint, model
from simplestack.training.dataset import Photos

SHARED = PROJECT.parent / "shared"
ARCHIVE = os.environ.get("DATA_URL") or str(SHARED / "hymenoptera_data.zip")
WEIGHTS = os.environ.get("TORCH_HOME") or str(SHARED / "torch_home")

real = pytest.mark.skipif(
    not (Path(ARCHIVE).exists() or "://" in ARCHIVE) or not Path(WEIGHTS).exists(),
    reason="the real photos and weights aren't here: name them in DATA_URL and TORCH_HOME",
)


def copy_project(folder: Path) -> Path:
    """Copy the project's files, to run things in that write beside them."""
    files = "git ls-files -z --cached --others --exclude-standard"
    run("sh", "-c", f"{files} | tar -c --null -T - | tar -x -C {folder}")
    return folder


@pytest.fixture(scope="module")
def walked(tmp_path_factory) -> tuple[Path, str]:
    """The commands of the README's walk, run one after the other; the folder and the output."""
    readme = (PROJECT / "README.md").read_text()
    walk = readme[readme.index("\n## Step by step") : readme.index("\n## Your own photos")]
    scripts = r"^(?:sh get_data|python train\.py|python saveToBento\.py).*"
    folder, output = copy_project(tmp_path_factory.mktemp("walk")), ""
    environment = {"DATA_URL": ARCHIVE, "TORCH_HOME": WEIGHTS, "BENTOML_HOME": f"{folder}/bentoml"}
    for block in re.findall(r"```sh\n(.*?)```", walk, re.DOTALL):
        for command in re.findall(scripts, block, re.MULTILINE):
            result = run("sh", "-c", command, cwd=folder, **environment)
            assert result.returncode == 0, result.stderr
            output += f"$ {command}\n{result.stdout}"
    return folder, output


@real
def test_walk_prints_each_next_command_and_reaches_the_tutorials_accuracy(walked):
    folder, output = walked
    for command in ("python train.py", "python saveToBento.py", "bentoml serve"):
        assert f"Next: {command}" in output
    state = checkpoint.load(cli.newest(".ckpt", folder / "saved_models"))
    assert state.best_row["val_accuracy"] >= 0.93


@real
@torch.inference_mode()
def test_served_answers_agree_with_pytorch(walked):
    folder, output = walked
    state = checkpoint.load(cli.newest(".ckpt", folder / "saved_models"))
    network = model.Classifier(len(state.classes))
    network.load_state_dict(state.best)
    val = Photos(folder / "data", state.photos["val"], state.classes, whole=False)
    assert len(val) == 153
    ((logits, _),) = onnx_export.outputs_of([network.eval()], val)
    expected = logits.argmax(1)
    with local_server.serve(re.search(r"saved path: (.+)", output)[1]) as url:
        answers = [
            post(url, (val.data_dir / name).read_bytes()).json()["label"] for name in val.names
        ]
    served, targets = np.array([state.classes.index(x) for x in answers]), val.labels.numpy()
    # As packing promises: int8 makes at most one answer wrong, and may make others right.
    assert ((served != expected) & (served != targets)).sum() <= 1
    exported = OnnxModel(cli.newest(".ckpt", folder / "saved_models").with_suffix(".onnx"))
    ((logits, _),) = onnx_export.outputs_of([exported], val)
    assert (served == logits.argmax(1)).all()


def make_run(copy: Path) -> str:
    """Run all steps until the page is served, then press Ctrl-C; return what was printed."""
    port, output = local_server.free_port(), ""
    homes = {"BENTOML_HOME": f"{copy}/bentoml", "TORCH_HOME": f"{copy}/no-weights"}
    environment = {**os.environ, **OFFLINE, **homes, "DATA_URL": "", "PORT": str(port)}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    start = {"cwd": copy, "env": environment, "start_new_session": True, "text": True}
    process = subprocess.Popen(["sh", "run.sh"], **start, **pipes)
    while f"the page: http://localhost:{port}/" not in output:
        assert process.poll() is None, output
        output += process.stdout.readline()
    url = f"http://127.0.0.1:{port}"
    wait_until_ready(url, lambda: "" if process.poll() is None else process.stdout.read())
    assert post(url, (copy / "data-sample" / "val" / "bees" / "00.jpg").read_bytes()).ok
    os.killpg(process.pid, signal.SIGINT)
    output += process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    return output


def test_make_run_does_everything_on_drawn_pictures_if_nothing_can_be_reached(tmp_path):
    copy = copy_project(tmp_path)
    (copy / ".venv").symlink_to(Path(sys.executable).parent.parent)
    output = make_run(copy)
    assert "DEMONSTRATION ONLY" in output
    assert re.search(r'val/bees/\d+\.jpg \(correct: bees\) → {"label": ?"(ants|bees)"', output), (
        output
    )
    assert re.search(r"^validation accuracy: [01]\.\d{4} before packing", output, re.MULTILINE)
    assert "report: saved_models/sample/report.html" in output
    assert "Next:" not in output
    again = make_run(copy)
    assert "nothing to do" in again
    assert "is packed already" in again
