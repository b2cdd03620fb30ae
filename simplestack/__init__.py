"""The Simple Stack: `serving` is what is deployed, `training` and `packing` lead there."""

import os
import signal


def exit_on_ctrl_c() -> None:
    """End without a traceback on Ctrl-C, while modules load: there is nothing to clean up yet."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def raise_on(*numbers: signal.Signals) -> None:
    """Let these signals, and Ctrl-C if it isn't ignored, raise KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in numbers:
        signal.signal(number, signal.default_int_handler)


def _exit(*_: object) -> None:
    os.write(2, b"\nStopped.\n")
    os._exit(130)
