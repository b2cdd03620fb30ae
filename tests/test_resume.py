import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small import PROJECT, run, same, split_folder, start, weights

from simplestack.serving.errors import StackError
from simplestack.training import checkpoint, engine
from simplestack.training.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return split_folder(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module", autouse=True)
def offline_weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(weights(tmp_path_factory.mktemp("torch"))))
        yield


def stop_after(
    process: "subprocess.Popen[str]", line: str, number: int, *, group: bool = False
) -> str:
    """Send a signal once a line with that start has been printed; return what follows it.

    The `group` gets it with all its processes, as when Ctrl-C is typed.
    """
    with process:
        assert process.stdout
        for printed in process.stdout:
            if printed.startswith(line):
                (os.killpg if group else os.kill)(process.pid, number)
                break
        return process.stdout.read()


@pytest.mark.parametrize(("recipe", "epochs", "killed"), [("lp-ft", 6, 3), ("tutorial", 3, 1)])
def test_a_killed_and_resumed_run_ends_as_one_that_never_stopped(
    tmp_path: Path, photos: Path, recipe: str, epochs: int, killed: int
) -> None:
    arguments = ("--data-dir", photos, "--epochs", epochs, "--recipe", recipe)
    straight = run(tmp_path / "straight.ckpt", *arguments)
    path = tmp_path / "killed.ckpt"
    stop_after(start(*arguments, "--output", path), f"epoch {killed:2}/{epochs}", signal.SIGKILL)
    assert checkpoint.load(path).epoch < epochs
    resumed = run(path, "-c", path)
    assert same(resumed.last, straight.last)
    assert same(resumed.best, straight.best)


def test_sigterm_leaves_the_finished_epochs_and_says_how_to_go_on(
    tmp_path: Path, photos: Path
) -> None:
    path = tmp_path / "a.ckpt"
    process = start("--data-dir", photos, "--epochs", 50, "--output", path)
    said = stop_after(process, "epoch  1/50", signal.SIGTERM)
    assert checkpoint.load(path).epoch >= 1
    assert f"python train.py -c {path}" in said
    assert process.returncode == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_reads_in_processes_stops_as_it_begins_to(
    tmp_path: Path, photos: Path, number: int
) -> None:
    path = tmp_path / "a.ckpt"
    process = start("--data-dir", photos, "--epochs", 50, "--cache", 0, "--output", path)
    said = stop_after(process, "epoch  0/50", number, group=True)
    assert process.returncode == 130
    assert said.split("\n\n")[-1].startswith(("Stopped. To go on", "\nStopped. To go on"))
    assert "Traceback" not in said
    assert "ignored" not in said


def test_a_signal_that_comes_while_signals_are_held_comes_afterwards() -> None:
    with pytest.raises(KeyboardInterrupt), engine.held_signals():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        held = True
    assert held


def test_a_finished_run_can_be_taken_elsewhere_with_its_photos(tmp_path: Path) -> None:
    photos, path = split_folder(tmp_path / "photos"), tmp_path / "a.ckpt"
    run(path, "--data-dir", photos, "--freeze")
    moved = photos.rename(tmp_path / "moved")
    before = path.read_bytes()
    taken = run(tmp_path / "b.ckpt", "-c", path, "--data-dir", moved)
    assert taken.arguments["data_dir"] == str(moved)
    assert same(taken.best, checkpoint.load(path).best)
    assert path.read_bytes() == before


def test_a_disk_that_fills_up_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    checkpoint.save(path, Checkpoint(["a", "b"], {}, {}, "the old one", {}))
    code = """
import sys, torch
from pathlib import Path
from simplestack.training import checkpoint
weights = {"weights": torch.zeros(1_000_000)}
checkpoint.save(Path(sys.argv[1]), checkpoint.Checkpoint(["a", "b"], {}, {}, "", {}, weights))
"""

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        [sys.executable, "-c", code, path],
        cwd=PROJECT,
        preexec_fn=small_disk,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "what was there before is untouched" in done.stderr
    assert checkpoint.load(path).notice == "the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_ctrl_c_while_a_checkpoint_is_written_is_no_full_disk(tmp_path: Path) -> None:
    path, part = tmp_path / "a.ckpt", tmp_path / "a.ckpt.part"
    checkpoint.save(path, Checkpoint(["a", "b"], {}, {}, "the old one", {}))
    os.mkfifo(part)  # a disk that takes the first bytes, then waits

    def press() -> None:
        with part.open("rb") as file:
            file.read(1)
            os.kill(os.getpid(), signal.SIGINT)

    presses = threading.Thread(target=press)
    presses.start()
    weights = {"weights": torch.zeros(1_000_000)}
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, Checkpoint(["a", "b"], {}, {}, "", {}, weights))
    presses.join()
    assert checkpoint.load(path).notice == "the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_the_tutorials_own_checkpoints_are_refused_with_the_remedy(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    path = tmp_path / "tutorial.ckpt"
    torch.save(
        {"model": layer.state_dict(), "optimizer": torch.optim.SGD(layer.parameters())}, path
    )
    with pytest.raises(StackError, match=r"2020 tutorial.*train again with `python train.py`"):
        checkpoint.load(path)


def test_what_decides_the_result_cannot_be_changed_on_the_way(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.ckpt"
    run(path, "--data-dir", photos, "--freeze")
    with pytest.raises(SystemExit):
        run(path, "-c", path, "--seed", 1)
    assert "--seed is 0 in this run" in capsys.readouterr().err


def test_a_photo_that_has_gone_is_named_when_resuming(tmp_path: Path) -> None:
    photos, path = split_folder(tmp_path / "photos"), tmp_path / "a.ckpt"
    run(path, "--data-dir", photos, "--freeze")
    (photos / "train" / "ants" / "0.png").unlink()
    with pytest.raises(StackError, match=r"lacks train/ants/0\.png"):
        run(path, "-c", path)
