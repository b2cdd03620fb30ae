"""Decoders in which a picture is a program: what code can do there that has taken one over.

HOOK, at the end of images.py, makes a decoder run the "pictures" that `attack` returns.
"""

import json
import os
import sys
from pathlib import Path

from helpers import write_script

from simplestack.serving import sandbox

PYTHON = sys.executable  # which a test replaces
HOOK = """
import ctypes, errno, json, os, resource, signal, socket, subprocess
libc, honest = ctypes.CDLL(None, use_errno=True), read

def read(program, *rest):
    if not program.startswith(b"victims"):
        return honest(program, *rest)
    names = {**globals()}
    exec(program, names)
    raise BadImageError(json.dumps(names["outcomes"]))
"""
ATTACK = """
def outcome(action):
    try:
        done = action()
    except OSError as error:
        return errno.errorcode[error.errno]
    return errno.errorcode[ctypes.get_errno()] if done == -1 else f"did it: {done!r}"

buffer = ctypes.create_string_buffer(64)
pieces = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 64)
actions = {
    "socket": socket.socket,
    "socketpair": socket.socketpair,
    "connect": lambda: libc.connect(socket_of_the_decoder, buffer, 64),
    "fork": lambda: os.fork() or os._exit(0),
    "vfork": lambda: subprocess.Popen(["/bin/true"], close_fds=False),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "write": lambda: open("/tmp/x", "w"),
    "write to the log": lambda: os.open("/dev/stdout", os.O_WRONLY),
    "delete": lambda: os.unlink("/tmp/x"),
    "create a folder": lambda: os.mkdir("/tmp/x"),
    "rename": lambda: os.rename("/tmp", "/tmp2"),
    "read": lambda: open("/etc/hostname").read(),
    "list": lambda: os.listdir("/proc"),
    "memfd": lambda: os.memfd_create("x"),
    "io_uring": lambda: libc.syscall(425, 1, buffer),
    "set a limit": lambda: libc.setrlimit(resource.RLIMIT_NOFILE, buffer),
    "ptrace": lambda: libc.ptrace(16, victims[0], None, None),
    "process_vm_readv": lambda: libc.process_vm_readv(victims[0], pieces, 1, pieces, 1, 0),
    "kill": lambda: os.kill(victims[0], signal.SIGKILL),
    "kill a group": lambda: os.killpg(0, signal.SIGKILL),
    "pidfd": lambda: os.pidfd_open(victims[0]),
}
for pid in victims:
    for name in ("environ", "mem", "maps", "fd/0", "root/etc/hostname"):
        path = f"/proc/{pid}/{name}"
        actions[path] = lambda path=path: os.open(path, os.O_RDONLY)
for number in numbers:
    actions[number] = lambda number=number: libc.syscall(number, 0, 0, 0, 0, 0, 0)
outcomes = {name: outcome(actions[name]) for name in chosen or actions}
outcomes["environment"] = sorted(os.environ)
"""


def attack(victims: list[int], chosen: list[str] | None = None) -> bytes:
    """Return a program that tries all that a decoder mustn't do, or the chosen things.

    `victims` are ids of processes, that of the worker first. The outcome of each trial, by its
    name, path or number, is an errno's name.
    """
    machine = os.uname().machine
    column, _, clone = sandbox.MACHINES[machine]
    allowed = {int(call.split()[column]) for call in sandbox.ALLOWED.split(",")}
    if machine == "x86_64":
        allowed |= {335, 336}  # those of uprobes, which Linux doesn't filter; here they only kill
    numbers = [*sorted({*range(500)} - allowed - {clone}), clone]
    return f"{victims=}\n{numbers=}\n{chosen=}\nsocket_of_the_decoder = 3\n{ATTACK}".encode()


def check(outcomes: dict[str, object]) -> None:
    """Check that an attack has failed in all its parts."""
    environment = outcomes.pop("environment")
    assert {"MALLOC_ARENA_MAX", "OPENBLAS_NUM_THREADS"} <= set(environment)
    assert not [name for name in environment if "TOKEN" in name or "BENTO" in name]
    assert outcomes.pop(str(sandbox.CLONE3)) == "ENOSYS"
    assert {name: x for name, x in outcomes.items() if x != "EPERM"} == {}


def python(folder: Path, code: str) -> str:
    """Write a Python whose fork server runs some code first; return its path."""
    start = "decoder.fork_decoders(socket.socket(fileno=int(sys.argv[1])))"
    program = (
        f"import socket, sys\nfrom simplestack.serving import decoder, images\n{code}\n{start}"
    )
    (folder / "program.py").write_text(program)
    load = f"exec(open({str(folder / 'program.py')!r}).read())"
    write_script(folder / "python", f'exec {PYTHON} -c "{load}" "$3"')
    return str(folder / "python")


def hooked() -> str:
    """Return code for `python` that makes pictures programs."""
    return f"exec({HOOK!r}, vars(images))"


def outcomes(reply: str) -> dict[str, object]:
    """Return the outcomes in the sentence of a decoder's error."""
    return json.loads(reply)
