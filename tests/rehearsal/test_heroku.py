"""deploy.sh with Heroku's CLI, a Docker Engine, a registry and a stand-in for Heroku itself.

What isn't installed (`sh tests/rehearsal/install.sh`, as root on Debian) skips what needs it.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import error_line, run
from rehearsal.containers import BASE, STATE, background, on_the_path, rehearsal

Deployed = Callable[[str], subprocess.CompletedProcess]
ADDRESS_OF_OLDER_STORE = "unix:///run/rehearsal-classic/docker.sock"


@pytest.fixture(scope="module")
def older_store(engine) -> Iterator[dict[str, str]]:  # noqa: ARG001
    """The environment of an engine with the image store from before the containerd store."""
    environment = {"DOCKER_HOST": ADDRESS_OF_OLDER_STORE}
    inspect = ("docker", "image", "inspect", BASE)
    with background("sh", "tests/rehearsal/engine.sh", "classic", **rehearsal) as process:
        while run(*inspect, **rehearsal | environment).returncode != 0:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.2)
        yield environment
        process.terminate()


def oci_images(folder: Path) -> dict[str, str]:
    """Return the environment of a Docker that builds what BuildKit does by itself since 0.31."""
    options = "--output type=image,oci-mediatypes=true"
    script = f'[ "$1" != build ] || set -- "$@" {options}\nexec {STATE}/engine/usr/bin/docker "$@"'
    return {"PATH": on_the_path(folder, docker=script)}


def on_arm(folder: Path) -> dict[str, str]:
    """Return an environment in which nothing is built for amd64 unless it is named."""
    path = on_the_path(folder, uname="echo arm64")
    return {"PATH": path, "DOCKER_DEFAULT_PLATFORM": "linux/arm64"}


def without_buildx(folder: Path) -> dict[str, str]:
    """Return the environment of a Docker that has no buildx."""
    folder.mkdir()
    config = json.loads((STATE / "docker" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"cliPluginsExtraDirs": []}))
    return {"DOCKER_CONFIG": str(folder)}


def without_docker(folder: Path) -> dict[str, str]:
    """Return an environment with all commands but Docker's."""
    folder.mkdir()
    for path in rehearsal["PATH"].split(":"):
        for program in Path(path).glob("*"):
            if program.name != "docker" and not (folder / program.name).exists():
                (folder / program.name).symlink_to(program.absolute())
    return {"PATH": str(folder)}


REJECTED = """heroku create refused --stack container --no-remote
    heroku container:login
    cd $SAVED_PATH
    heroku container:push web --app refused"""
PRIVATE = """heroku create private --stack container --no-remote
    heroku config:set API_TOKEN=secret --app private
    API_TOKEN=secret sh deploy.sh private
    sh deploy.sh private"""
CRASHING = """heroku create crashing --stack container --no-remote
    heroku config:set MAX_BYTES=nonsense --app crashing
    READY_WITHIN=10 sh deploy.sh crashing"""


@pytest.fixture(scope="module")
def scenarios(older_store, tmp_path_factory) -> dict[str, tuple[str, dict[str, str]]]:
    """Shell commands and their environment, by name; each has apps of its own."""
    folder = tmp_path_factory.mktemp("heroku")
    oci, arm = oci_images(folder / "oci"), on_arm(folder / "arm")
    no_buildx, no_docker = without_buildx(folder / "config"), without_docker(folder / "no-docker")
    return {
        "refused": (REJECTED, oci),
        "today's Docker": ("sh deploy.sh todays --yes", oci),
        "repeated": ("sh deploy.sh my-app --yes; sh deploy.sh my-app", {}),
        "older store": ("sh deploy.sh older --yes", older_store),
        "ARM": ("sh deploy.sh on-arm --yes", arm),
        "ARM, older store": ("sh deploy.sh on-older-arm --yes", arm | older_store),
        "no buildx, older store": ("sh deploy.sh no-buildx --yes", no_buildx | older_store),
        "no buildx": ("sh deploy.sh heroku-builds --yes", no_buildx),
        "no Docker": ("sh deploy.sh no-docker --yes; sh deploy.sh no-docker", no_docker),
        "by hand": ('eval "$(sh deploy.sh by-hand --dry-run)"', {}),
        "private": (PRIVATE, {}),
        "crashing": (CRASHING, {}),
        "taken": ("sh deploy.sh taken --yes", {}),
        "wrong stack": ("heroku create buildpacks --no-remote; sh deploy.sh buildpacks", {}),
        "no key": ("sh deploy.sh nobody </dev/null", {"HEROKU_API_KEY": ""}),
        "wrong key": ("sh deploy.sh nobody </dev/null", {"HEROKU_API_KEY": "wrong"}),
    }


@pytest.fixture(scope="module")
def deployed(scenarios, image, bento, photo) -> Iterator[Deployed]:  # noqa: ARG001
    """Return what came of a scenario; several run at a time."""
    common = rehearsal | {"SAVED_PATH": str(bento), "PHOTO": str(photo)}

    def start(commands: str, environment: dict[str, str]) -> subprocess.CompletedProcess:
        return run("sh", "-euc", commands, **common | environment)

    with ThreadPoolExecutor(3) as pool:
        runs = {name: pool.submit(start, *scenario) for name, scenario in scenarios.items()}
        yield lambda name: runs[name].result()


def predicted(result: subprocess.CompletedProcess) -> bool:
    assert result.returncode == 0, result.stdout + result.stderr
    return '{"label": ' in result.stdout


def test_todays_docker_is_rejected_by_herokus_registry(deployed):
    result = deployed("refused")
    assert result.returncode != 0
    assert "405 Method Not Allowed" in result.stderr
    assert "docker push exited with" in result.stderr


@pytest.mark.usefixtures("engine")
def test_the_registry_rejects_with_the_word_that_herokus_uses():
    kind = "application/vnd.oci.image.manifest.v1+json"
    url = f"https://registry.{rehearsal['HEROKU_HOST']}/v2/any/web/manifests/latest"
    curl = ("curl", "-s", "--cacert", STATE / "ca.crt", "-u", "_:rehearsal", "-X", "PUT")
    result = run(*curl, "-H", f"Content-Type: {kind}", url, **rehearsal)
    assert json.loads(result.stdout)["errors"][0]["code"] == "UNSUPPORTED"


def test_deploy_gets_through_with_todays_docker(deployed):
    assert predicted(deployed("today's Docker"))


def test_a_deployment_can_be_repeated_and_predicts_each_time(deployed):
    result = deployed("repeated")
    assert predicted(result)
    assert result.stdout.count("$ heroku create my-app") == 1
    assert result.stdout.count('{"label": ') == 2
    assert result.stdout.count("heroku ps:scale web=0 --app my-app") == 2


def test_deploy_gets_through_with_the_older_image_store(deployed):
    result = deployed("older store")
    assert "heroku container:push web --app older" in result.stdout
    assert predicted(result)


def test_deploy_gets_through_on_arm(deployed):
    assert predicted(deployed("ARM"))


def test_deploy_gets_through_on_arm_with_the_older_image_store(deployed):
    assert predicted(deployed("ARM, older store"))


def test_deploy_gets_through_without_buildx(deployed):
    result = deployed("no buildx, older store")
    assert "$ docker build --platform linux/amd64" in result.stdout
    assert predicted(result)


def test_deploy_gets_through_without_buildx_from_the_containerd_store(deployed):
    result = deployed("no buildx")
    assert "push --force https://git" in result.stdout
    assert predicted(result)


def test_deploy_gets_through_without_docker(deployed, bento):
    result = deployed("no Docker")
    assert predicted(result)
    assert result.stdout.count('{"label": ') == 2
    assert not (bento / ".git").exists()


def test_the_commands_of_a_dry_run_deploy_it_too(deployed):
    assert predicted(deployed("by hand"))


def test_a_token_protects_a_deployed_app(deployed):
    result = deployed("private")
    assert result.stdout.count('{"label": ') == 1
    assert "API_TOKEN=... sh deploy.sh private" in result.stderr


def test_an_app_that_crashes_is_explained_from_its_log(deployed):
    result = deployed("crashing")
    assert "error: it crashed (H10)" in result.stderr
    assert "error: MAX_BYTES='nonsense'" in result.stderr


def test_somebody_elses_name_is_rejected(deployed):
    assert "choose another" in error_line(deployed("taken"))


def test_a_wrong_stack_is_explained(deployed):
    assert "heroku stack:set container --app buildpacks" in error_line(deployed("wrong stack"))


@pytest.mark.parametrize("key", ["no key", "wrong key"])
def test_without_a_login_the_deployment_says_so(deployed, key):
    assert "heroku login" in error_line(deployed(key))
