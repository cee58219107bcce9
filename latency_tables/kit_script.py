"""Times a network's kernels on this device, see README.txt. Needs Python, numpy, onnx and onnxruntime.

A measuring kit holds this file as ``measure.py``. Old Pythons must be able to read it far enough to
be told that they are too old, so nothing newer than Python 3.0 is written here.
"""

import os
import sys

NEEDED = (3, 10)
PACKAGES = ("numpy", "onnx", "onnxruntime")


def main() -> int:
    """Exit code: 0 done, 130 interrupted, 1 otherwise."""
    if sys.version_info[:2] < NEEDED:
        found = ".".join(str(part) for part in sys.version_info[:2])
        return _refuse("needs Python 3.10 or newer, and this is " + found)
    try:
        import fcntl  # noqa: F401
    except ImportError:
        return _refuse("needs Linux or macOS; on Windows run it in WSL")
    for package in PACKAGES:
        try:
            __import__(package)
        except ImportError as error:
            return _refuse(
                "cannot import "
                + package
                + " ("
                + str(error)
                + "); install what it needs: python3 -m pip install "
                + " ".join(PACKAGES)
            )
    import datetime

    # Python 3.10 has no such name yet.
    vars(datetime).setdefault("UTC", datetime.timezone.utc)  # noqa: UP017
    # First, so that a Trimtab installed here does not get in the way; isolated mode leaves it out.
    folder = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, folder)
    from latency_tables.kit_command import main as measure

    return measure(folder)


def _refuse(reason: str) -> int:
    sys.stderr.write("measure.py: " + reason + "\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
