"""Whether pip finds what the requirements ask for, for every Python that Paddle has wheels for; installs nothing.

pip can look for wheels of another Python than its own, but reads the markers (`python_version < "3.13"`) as its own.
"""

import subprocess
import sys
import tempfile

from packaging.requirements import Requirement
from test_imports import PYTHONS, lines


def wanted(name, python):
    """The requirements of a file that hold for a version of Python, without their markers."""
    for line in lines(name):
        requirement = Requirement(line.partition(" #")[0])
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            requirement.marker = None
            yield str(requirement)


def main():
    for python in PYTHONS:
        # The public index has no build of paddlepaddle-gpu for the newest.
        for name in ("requirements-cpu.txt", *(["requirements.txt"] if python != PYTHONS[-1] else [])):
            with tempfile.TemporaryDirectory() as folder:
                code = subprocess.run([sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--target", folder,
                                       "--only-binary=:all:", "--python-version", python, *wanted(name, python)],
                                      stderr=subprocess.PIPE, text=True)
            print(f"{name} for Python {python}: {'found' if code.returncode == 0 else code.stderr}", flush=True)
            if code.returncode:
                sys.exit(1)


if __name__ == "__main__":
    main()
