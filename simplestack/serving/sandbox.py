"""Leave a process no system calls but those that decoding needs: a seccomp filter, on Linux.

It can compute, get and return memory, start threads, and use the files that are open, but it can't
open others, so that the disk and /proc/PID/environ are out of its reach, too. A list of the calls
that are allowed holds for future kernels; it is short enough to need no library.
"""

import ctypes
import os
import struct
from errno import ENOSYS, EPERM

# The column below, AUDIT_ARCH_…, and the number of clone.
MACHINES = {"x86_64": (1, 0xC000003E, 56), "aarch64": (2, 0xC00000B7, 220)}
ALLOWED = """read 0 63, write 1 64, sendto 44 206, recvfrom 45 207, mmap 9 222, munmap 11 215,
mremap 25 216, mprotect 10 226, brk 12 214, madvise 28 233, futex 202 98, rt_sigprocmask 14 135,
rt_sigaction 13 134, rt_sigreturn 15 139, set_robust_list 273 99, rseq 334 293, gettid 186 178,
sched_yield 24 124, sched_getaffinity 204 123, setitimer 38 103, exit 60 93, exit_group 231 94"""
LOAD, IF_EQUAL, IF_SET, RETURN = 0x20, 0x15, 0x45, 0x06  # BPF's instructions
ALLOW, FAIL, KILL = 0x7FFF0000, 0x00050000, 0x80000000  # SECCOMP_RET_…; FAIL | errno
NUMBER, ARCHITECTURE, FLAGS = 0, 4, 16  # offsets in struct seccomp_data; flags of clone
CLONE3, CLONE_THREAD = 435, 0x00010000


def rules(machine: str) -> bytes:
    """Return the filter for a machine, a key of MACHINES, in instructions of 8 bytes."""
    column, architecture, clone = MACHINES[machine]
    code = [(LOAD, 0, 0, ARCHITECTURE), (IF_EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL)]
    code += [(LOAD, 0, 0, NUMBER)]
    for call in ALLOWED.split(","):
        code += [(IF_EQUAL, 0, 1, int(call.split()[column])), (RETURN, 0, 0, ALLOW)]
    # A filter can't see clone3's flags, which are in memory: without it, libc calls clone.
    code += [(IF_EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, FAIL | ENOSYS), (IF_EQUAL, 0, 3, clone)]
    code += [(LOAD, 0, 0, FLAGS), (IF_SET, 0, 1, CLONE_THREAD), (RETURN, 0, 0, ALLOW)]
    code += [(RETURN, 0, 0, FAIL | EPERM)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


# Made once: it would take a fifth of a decoder's start.
MACHINE, PRCTL = os.uname().machine, getattr(ctypes.CDLL(None), "prctl", lambda *_: -1)  # macOS
CODE = ctypes.create_string_buffer(rules(MACHINE) if MACHINE in MACHINES else b"")
PROGRAM = struct.pack("HP", len(CODE) // 8, ctypes.addressof(CODE))


def enter() -> bool:
    """Filter the system calls of this process from now on; return whether the host lets it."""
    PRCTL(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    return bool(PRCTL(22, 2, PROGRAM) == 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
