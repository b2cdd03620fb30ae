"""The sandbox of decoders: what code can do that has taken one over."""

import os
import struct
import sys
from pathlib import Path

import psutil
import pytest
import taken_over
from prometheus_client import REGISTRY

from simplestack.serving import decoder_pool, errors, sandbox, settings

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux filters system calls"),
]
TOKEN = "sesame-38b0"  # noqa: S105
NO_FILTER = "from simplestack.serving import sandbox; sandbox.PROGRAM = bytes(16)"


@pytest.fixture
def pool_of(tmp_path, monkeypatch):
    """Return a function that makes a pool whose fork server runs some code first."""

    def pool_of(code):
        monkeypatch.setenv("API_TOKEN", TOKEN)
        monkeypatch.setattr(sys, "executable", taken_over.python(tmp_path, code))
        return decoder_pool.Decoders(settings.Settings(api_token=TOKEN), cores=1)

    return pool_of


async def run(pool, program):
    """Run a program in a decoder of the fast lane; return its outcomes."""
    with pytest.raises(errors.BadImageError) as raised:
        await pool.fast.decode(program)
    return taken_over.outcomes(str(raised.value))


async def test_code_in_a_decoder_can_do_nothing_but_compute_and_reply(pool_of):
    async with pool_of(taken_over.hooked()) as pool:
        victims = [os.getpid(), *(pid for pid in psutil.pids() if pid != os.getpid())]
        attack = taken_over.attack(victims)
        taken_over.check(await run(pool, attack))
        assert pool.sandboxed
        assert REGISTRY.get_sample_value("decoders_sandboxed") == 1


async def test_a_decoder_has_no_file_but_its_socket_and_no_token(pool_of):
    async with pool_of("") as pool:
        process, number = await pool.fast.idle.get()
        proc = Path("/proc", str(number))
        files = sorted(str(file.readlink()).split(":")[0] for file in (proc / "fd").iterdir())
        assert files == ["/dev/null", "/dev/null", "/dev/null", "socket"]
        for file in ("environ", "cmdline"):
            assert TOKEN not in (proc / file).read_text()
        limits = (proc / "limits").read_text()
        for name in ("Max open files", "Max file size", "Max core file size"):
            (line,) = (line for line in limits.splitlines() if line.startswith(name))
            assert line.removeprefix(name).split()[:2] == ["0", "0"]
        assert "NoNewPrivs:\t1\nSeccomp:\t2\n" in (proc / "status").read_text()
        pool.fast.idle.put_nowait((process, number))


async def test_without_a_filter_decoders_start_and_the_log_and_a_metric_tell(
    pool_of, photo, caplog
):
    async with pool_of(NO_FILTER) as pool:
        for _ in range(2):
            await pool.fast.decode(photo.read_bytes())
            await pool.slow.decode(photo.read_bytes())
        assert caplog.text.count("decoders run without a sandbox") == 1
        assert REGISTRY.get_sample_value("decoders_sandboxed") == 0
    async with pool_of(f"{NO_FILTER}\n{taken_over.hooked()}") as pool:
        attack = taken_over.attack([os.getpid()], chosen=["socket", "read", "write", "memfd"])
        outcomes = await run(pool, attack)
        del outcomes["environment"]
        assert set(outcomes.values()) == {"EMFILE"}


async def test_a_mistake_in_a_decoder_is_logged_with_its_traceback(pool_of, caplog):
    async with pool_of(taken_over.hooked()) as pool:
        with pytest.raises(errors.TooLargeError):
            await pool.fast.decode(b"victims = 1 / 0")
    assert "in decode\n" in caplog.text
    assert caplog.text.rstrip().endswith("ZeroDivisionError: division by zero")


def result(machine, architecture, number, flags=0):
    """Interpret the filter of a machine for a system call."""
    _, expected, _ = sandbox.MACHINES[machine]
    data = struct.pack("<iIQQ", number, architecture or expected, 0, flags)
    code = [*struct.iter_unpack("HBBI", sandbox.rules(machine))]
    at = loaded = 0
    while True:
        instruction, if_true, if_false, operand = code[at]
        at += 1
        match instruction:
            case sandbox.LOAD:
                (loaded,) = struct.unpack_from("<I", data, operand)
            case sandbox.IF_EQUAL:
                at += if_true if loaded == operand else if_false
            case sandbox.IF_SET:
                at += if_true if loaded & operand else if_false
            case sandbox.RETURN:
                return operand


EPERM, ENOSYS = sandbox.FAIL | 1, sandbox.FAIL | 38
CALLS = {  # some numbers on x86-64 and arm64, and what becomes of the call
    "read": (0, 63, sandbox.ALLOW),
    "mmap": (9, 222, sandbox.ALLOW),
    "exit_group": (231, 94, sandbox.ALLOW),
    "openat": (257, 56, EPERM),
    "socket": (41, 198, EPERM),
    "execve": (59, 221, EPERM),
    "clone": (56, 220, EPERM),
    "clone3": (435, 435, ENOSYS),
    "kill": (62, 129, EPERM),
    "x32's read": (0x40000000, 0x40000000, EPERM),
}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_of_each_machine(machine):
    column = sandbox.MACHINES[machine][0] - 1
    for name, row in CALLS.items():
        assert result(machine, 0, row[column]) == row[2], name
    thread = 0x3D0F00  # as glibc starts one
    assert result(machine, 0, CALLS["clone"][column], thread) == sandbox.ALLOW
    assert result(machine, 0x40000003, CALLS["read"][column]) == sandbox.KILL  # i386
