"""A stand-in for what a deployment meets of Heroku: its platform API and its git server.

    uvicorn --app-dir tests/rehearsal --host 127.0.0.2 --port 5002 stand_in:heroku

A released image starts as Heroku starts it: as a user that owns nothing, in 512 MB, read-only but
for /tmp, on a $PORT of Heroku's choosing. A git push is built first (hooks/pre-receive).
"""

import asyncio
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import requests
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

REGISTRY = "registry.rehearsal.herokudev.com"
BLOBS = "http://127.0.0.2:5001/v2/"
HEROKUS_RULES = (
    *("--user", "23456:0", "--memory", "512m", "--memory-swap", "512m", "--network", "host"),
    *("--read-only", "--tmpfs", "/tmp:rw,mode=1777", "--cap-drop", "ALL"),  # noqa: S108
)
TAKEN = "taken"  # the name of another account's app
HERE = Path(__file__).parent.absolute()
REPOSITORIES = HERE.parent.parent / ".rehearse" / "git"
apps: dict[str, dict[str, Any]] = {}
releases: dict[str, list[dict[str, Any]]] = {}
settings: dict[str, dict[str, str]] = {}


def refusal(status: int, kind: str, message: str) -> JSONResponse:
    return JSONResponse({"id": kind, "message": message}, status)


def docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(done.stderr)
    return done.stdout + done.stderr


def note_release(name: str) -> None:
    """Count a release: the creation of an app, and each change of its image or settings."""
    version = len(releases[name]) + 1
    row = {"id": f"{name}-v{version}", "version": version, "status": "succeeded"}
    releases[name].insert(0, row)


async def create(request: Request) -> Response:
    body = await request.json()
    name, stack = body["name"], {"name": body.get("stack", "heroku-26")}
    if name in {*apps, TAKEN}:
        return refusal(422, "invalid_params", f"Name {name} is already taken")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    releases[name], settings[name] = [], {}
    note_release(name)
    subprocess.run(["git", "init", "--quiet", "--bare", REPOSITORIES / f"{name}.git"], check=True)
    apps[name] = {
        "id": f"00000000-0000-4000-8000-{len(apps):012}",
        "name": name,
        "stack": stack,
        "build_stack": stack,
        "region": {"name": "us"},
        "owner": {"email": "me@example.com"},
        "git_url": f"https://git.rehearsal.herokudev.com/{name}.git",
        "repo_size": None,
        "slug_size": None,
        "web_url": f"http://127.0.0.1:{port}/",
    }
    return JSONResponse(apps[name], 201)


def look_up(request: Request) -> Response:
    name = request.path_params["name"]
    if name == TAKEN:
        return refusal(403, "forbidden", "You do not have access to the app taken.")
    if name not in apps:
        return refusal(404, "not_found", "Couldn't find that app.")
    part = request.path_params.get("part", "")
    if part == "pipeline-couplings":
        return refusal(404, "not_found", "Couldn't find that pipeline.")
    known = {"": apps[name], "config-vars": settings[name], "releases": releases[name][:1]}
    return JSONResponse(known.get(part, []))


async def configure(request: Request) -> Response:
    name = request.path_params["name"]
    settings[name].update(await request.json())
    note_release(name)
    return JSONResponse(settings[name])


async def release(request: Request) -> Response:
    """Start the image that was pushed, which the CLI names by the digest of its configuration."""
    name = request.path_params["name"]
    digest = (await request.json())["updates"][0]["docker_image"]
    machine = requests.get(f"{BLOBS}{name}/web/blobs/{digest}", timeout=60).json()
    if (machine["os"], machine["architecture"]) != ("linux", "amd64"):
        return refusal(422, "invalid_params", f"{machine['architecture']} isn't amd64")
    image = f"{REGISTRY}/{name}/web:latest"
    docker("rmi", "--force", image, check=False)  # what runs is what is in the registry
    docker("pull", "--quiet", image)
    start(name, image)
    return JSONResponse([{"type": "web", "quantity": 1, "docker_image": {"id": digest}}])


def release_built(request: Request) -> Response:
    name = request.path_params["name"]
    start(name, f"heroku-built/{name}")  # by hooks/pre-receive
    return PlainTextResponse(apps[name]["web_url"])


def start(name: str, image: str) -> None:
    port = apps[name]["web_url"].rstrip("/").rpartition(":")[2]
    docker("rm", "--force", f"heroku-{name}", check=False)
    variables = [f"--env={key}={value}" for key, value in {**settings[name], "PORT": port}.items()]
    docker("run", "--detach", "--name", f"heroku-{name}", *variables, *HEROKUS_RULES, image)
    note_release(name)


def log_session(request: Request) -> Response:
    url = f"http://127.0.0.2:5002/logs/{request.path_params['name']}"
    return JSONResponse({"logplex_url": url}, 201)


def log(request: Request) -> Response:
    """Return the app's log, and Heroku's line if it has ended, as server-sent events."""
    container = f"heroku-{request.path_params['name']}"
    lines = docker("logs", container).splitlines()
    if docker("inspect", "--format", "{{.State.Running}}", container).strip() != "true":
        lines.append('heroku[router]: at=error code=H10 desc="App crashed"')
    return Response("".join(f"data: {x}\n\n" for x in lines), media_type="text/event-stream")


async def git(request: Request) -> Response:
    """Hand a request to git's own server, a CGI program."""
    environment = {
        **{f"HTTP_{key.upper().replace('-', '_')}": v for key, v in request.headers.items()},
        **{"REQUEST_METHOD": request.method, "QUERY_STRING": request.url.query},
        **{"PATH_INFO": request.url.path, "CONTENT_TYPE": request.headers.get("content-type", "")},
        **{"GIT_PROJECT_ROOT": str(REPOSITORIES), "GIT_HTTP_EXPORT_ALL": "", "REMOTE_USER": "me"},
        **{"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.hooksPath"},
        **{"GIT_CONFIG_VALUE_0": str(HERE / "hooks")},
    }
    backend = await asyncio.create_subprocess_exec(
        *("git", "http-backend"),
        env=os.environ | environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    answer, _ = await backend.communicate(await request.body())
    head, _, body = answer.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
    return Response(body, int(headers.pop("Status", "200").split()[0]), headers)


heroku = Starlette(
    routes=[
        Route("/account", lambda _: JSONResponse({"email": "me@example.com"})),
        Route("/apps", create, methods=["POST"]),
        Route("/apps/{name}", look_up),
        Route("/apps/{name}/config-vars", configure, methods=["PATCH"]),
        Route("/apps/{name}/formation", release, methods=["PATCH"]),
        Route("/apps/{name}/builds", release_built, methods=["POST"]),
        Route("/apps/{name}/log-sessions", log_session, methods=["POST"]),
        Route("/apps/{name}/{part}", look_up),
        Route("/logs/{name}", log),
        Route("/{path:path}", git, methods=["GET", "POST"]),
    ]
)
