"""run.sh: its steps, their order and options; here, they only write to a log."""

import shutil

import pytest
from helpers import PROJECT, run, write_script

STEP = """echo "${0##*/} $*" >>"$LOG"
case "$*" in *" tag "*) echo name:version ;; esac
case "${0##*/} $*" in $FAILS) exit "$CODE" ;; esac"""


@pytest.fixture
def make_run(tmp_path):
    shutil.copy(PROJECT / "run.sh", tmp_path)
    for name in ("get_data.sh", "python", "bentoml"):
        write_script(tmp_path / name, STEP)

    def make_run(fails="nothing", code=0, **environment):
        (tmp_path / "log").unlink(missing_ok=True)
        environment = {"FAILS": fails, "CODE": str(code), "LOG": f"{tmp_path}/log", **environment}
        result = run("sh", "run.sh", cwd=tmp_path, PATH=f"{tmp_path}:/usr/bin:/bin", **environment)
        return result, (tmp_path / "log").read_text().splitlines()

    return make_run


def test_the_steps_follow_each_other(make_run):
    result, steps = make_run(PORT="5001")
    assert result.returncode == 0
    checkpoint, quiet = "saved_models/photos.ckpt", "--update --save-to-bento no"
    assert steps == [
        "python -m simplestack check-port",
        "get_data.sh ",
        "python -m simplestack fetch-weights",
        f"python train.py --data-dir data --output {checkpoint} {quiet}",
        f"python saveToBento.py {checkpoint}",
        f"python -m simplestack tag {checkpoint}",
        "bentoml serve name:version --host 127.0.0.1 --port 5001",
    ]
    assert f"\n$ python saveToBento.py {checkpoint}\n" in result.stdout
    assert "\nreport: saved_models/photos/report.html\n" in result.stdout
    assert "\nyour own photos: DATA_DIR=FOLDER make run" in result.stdout
    assert "\nthe page: http://localhost:5001/ " in result.stdout
    assert "curl -X POST http://localhost:5001/predict" in result.stdout


def test_folders_of_the_same_name_have_checkpoints_of_their_own(make_run, tmp_path):
    found = []
    for name in ("a/my photos", "b/my photos"):
        (tmp_path / name).mkdir(parents=True)
        result, steps = make_run(DATA_DIR=name)
        assert result.returncode == 0
        assert f"train.py --data-dir {name} --output saved_models/my photos-" in steps[3]
        assert (
            f"\n$ python train.py --data-dir '{name}' --output 'saved_models/my ph" in result.stdout
        )
        assert "your own photos" not in result.stdout
        found.append(steps[4])
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("fails", "missing"), [("get_data.sh ", "photos"), ("*fetch-weights", "ImageNet weights")]
)
def test_drawn_pictures_replace_photos_or_weights_that_cannot_be_reached(make_run, fails, missing):
    result, steps = make_run(fails, 69)
    assert result.returncode == 0, result.stderr
    assert f"DEMONSTRATION ONLY: can't get the {missing} (see above)." in result.stdout
    options = "--from-scratch --epochs 6 --lr 0.01 --output saved_models/sample.ckpt"
    assert steps[-5:] == [
        "get_data.sh --sample",
        f"python train.py --data-dir data-sample {options} --update --save-to-bento no",
        "python saveToBento.py saved_models/sample.ckpt",
        "python -m simplestack tag saved_models/sample.ckpt",
        "bentoml serve name:version --host 127.0.0.1 --port 5000",
    ]


@pytest.mark.parametrize("step", ["check-port", "fetch-weights", "train.py", "saveTo", " tag "])
def test_a_step_that_fails_is_the_last(make_run, step):
    result, steps = make_run(f"*{step}*", 3)
    assert result.returncode == 3
    assert step in steps[-1]
