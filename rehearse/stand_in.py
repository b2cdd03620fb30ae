"""A stand-in for the few calls of Heroku's platform API that a deployment makes, on loopback.

    python rehearse/stand_in.py ADDRESS CERTIFICATE KEY DOCKER

It starts a released image as Heroku does: as a user that owns nothing, in 512 MB, with a read-only
root but for /tmp, on a $PORT of its choosing.
"""

import json
import socket
import ssl
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REGISTRY = "registry.heroku.localhost"
HEROKUS_RULES = (
    *("--user", "23456:0", "--memory", "512m", "--memory-swap", "512m", "--network", "host"),
    *("--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp:rw,mode=1777"),  # noqa: S108
)
TAKEN = "taken"  # the name of an app of somebody else
Answer = tuple[int, Any]
docker = "docker"
apps: dict[str, dict[str, Any]] = {}
releases: dict[str, list[dict[str, Any]]] = {}
settings: dict[str, dict[str, str]] = {}


def create(name: str, stack: str) -> Answer:
    """Create an app, as POST /apps does."""
    if name in {*apps, TAKEN}:
        return 422, {"id": "invalid_params", "message": f"Name {name} is already taken"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    releases[name] = []
    settings[name] = {}
    note_release(name)
    apps[name] = {
        "id": f"00000000-0000-4000-8000-{len(apps):012}",
        "name": name,
        "stack": {"name": stack},
        "build_stack": {"name": stack},
        "region": {"name": "us"},
        "owner": {"email": "somebody@example.com"},
        "git_url": "",
        "repo_size": None,
        "slug_size": None,
        "web_url": f"http://127.0.0.1:{port}/",
    }
    return 201, apps[name]


def release(name: str, image: str) -> Answer:
    """Start an image, which must be the one that was pushed, as PATCH /apps/APP/formation does."""
    reference = f"{REGISTRY}/{name}/web:latest"
    run("rmi", "--force", reference)  # what runs is what is in the registry
    if run("pull", "--quiet", reference) != image.removeprefix("sha256:"):
        return 422, {"id": "invalid_params", "message": f"{image} was not pushed to {reference}"}
    port = apps[name]["web_url"].rstrip("/").rpartition(":")[2]
    run("rm", "--force", "--time", "10", f"heroku-{name}")
    variables = [f"--env={key}={value}" for key, value in {**settings[name], "PORT": port}.items()]
    run("run", "--detach", "--name", f"heroku-{name}", *variables, *HEROKUS_RULES, image)
    version = len(releases[name]) + 1
    releases[name].insert(
        0, {"id": f"{name}-v{version}", "version": version, "status": "succeeded"}
    )
    return 200, [{"type": "web", "quantity": 1, "docker_image": {"id": image}}]


def note_release(name: str) -> None:
    """Count a release: the creation of an app, and each change of its image or settings."""
    version = len(releases[name]) + 1
    releases[name].insert(
        0, {"id": f"{name}-v{version}", "version": version, "status": "succeeded"}
    )


def run(*arguments: str) -> str:
    """Run a command of the container engine, and give the last line that it prints."""
    done = subprocess.run([docker, *arguments], capture_output=True, text=True, check=False)
    sys.stderr.write(done.stderr)
    return (done.stdout.split() or [""])[-1]


def log_of(name: str) -> str:
    """Give what the app has said, and what Heroku says where it has ended."""
    container = f"heroku-{name}"
    done = subprocess.run([docker, "logs", container], capture_output=True, text=True, check=False)
    running = run("inspect", "--format", "{{.State.Running}}", container) == "true"
    crashed = "" if running else 'heroku[router]: at=error code=H10 desc="App crashed"\n'
    lines = (done.stdout + done.stderr + crashed).splitlines()
    return "".join(f"data: {line}\n\n" for line in lines)  # as server-sent events


class Platform(BaseHTTPRequestHandler):
    """Answers as api.heroku.com does."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer what the CLI looks up."""
        match self.path.split("?")[0].strip("/").split("/"):
            case ["account"]:
                self.answer(200, {"email": "somebody@example.com"})
            case ["logs", name]:
                self.answer(200, log_of(name))
            case ["apps", name, *_] if name == TAKEN:
                self.answer(403, {"id": "forbidden", "message": "You do not have access to it."})
            case ["apps", name, *_] if name not in apps:
                self.answer(404, {"id": "not_found", "message": "Couldn't find that app."})
            case ["apps", name]:
                self.answer(200, apps[name])
            case ["apps", name, "config-vars"]:
                self.answer(200, settings[name])
            case ["apps", name, "releases"]:
                self.answer(200, releases[name][:1])
            case ["apps", _, "pipeline-couplings"]:
                self.answer(404, {"id": "not_found", "message": "Couldn't find that pipeline."})
            case _:
                self.answer(200, [])

    def do_POST(self) -> None:
        """Create an app, or a session of its log."""
        body = self.body()
        match self.path.strip("/").split("/"):
            case ["apps"]:
                self.answer(*create(body["name"], body.get("stack", "heroku-24")))
            case ["apps", name, "log-sessions"]:
                url = f"https://api.heroku.localhost/logs/{name}"
                self.answer(201, {"logplex_url": url})
            case _:
                self.answer(404, {"id": "not_found", "message": "Not rehearsed."})

    def do_PATCH(self) -> None:
        """Release an image, or change the settings of an app, for its next release."""
        match self.path.strip("/").split("/"):
            case ["apps", name, "config-vars"]:
                settings[name].update(self.body())
                note_release(name)
                self.answer(200, settings[name])
            case ["apps", name, "formation"]:
                self.answer(*release(name, self.body()["updates"][0]["docker_image"]))
            case _:
                self.answer(404, {"id": "not_found", "message": "Not rehearsed."})

    def body(self) -> dict[str, Any]:
        """Read the JSON object that was sent."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parsed: dict[str, Any] = json.loads(body or b"{}")
        return parsed

    def answer(self, status: int, what: Any) -> None:
        """Send JSON, or events."""
        body = (what if isinstance(what, str) else json.dumps(what)).encode()
        self.send_response(status)
        kind = "text/event-stream" if isinstance(what, str) else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main(address: str, certificate: str, key: str, program: str) -> None:
    """Serve over TLS until it is stopped."""
    global docker  # noqa: PLW0603
    docker = program
    server = ThreadingHTTPServer((address, 443), Platform)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
