"""``python -m npmeta``, and the program ``npmeta``."""

import signal
import sys


def command() -> None:
    """The program: everything is imported, then it begins."""
    # While nothing has been begun an interrupt ends the process, without a traceback.
    interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interrupts:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from npmeta.cli.main import main

    if interrupts:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status = main()
        # All is done and said, and while Python ends an interrupt would only be a traceback.
        if interrupts:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:  # between the end of the one and the beginning of the other
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    command()
