"""The entry point of `chunkrl` and `python -m chunkrl`: a Control-C while modules are imported shows no traceback."""

import signal


def main() -> None:
    """Runs the command line."""
    interruptible = (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )  # else it is ignored, as by nohup
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from chunkrl.cli import main as run

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
