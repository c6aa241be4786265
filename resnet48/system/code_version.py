"""Which code this is: its files, a digest of them, and the git commit where they are as committed."""

import glob
import hashlib
import os
import subprocess

from . import files
from .config import HERE

#: What programs need to run, and what says how to use them and under which licence.
PATTERNS = ("*.py", "*.sh", "requirements*.txt", "README.md", "docs/*.md", "docs/figures/*.svg", "LICENSE",
            "configs/**/*.yaml", "resnet48/**/*.py", "resnet48/**/*.sh")


def code_files() -> dict[str, str]:
    """Relative name -> path of every file of the code, in order."""
    found = {os.path.relpath(path, HERE).replace(os.sep, "/"): path for pattern in PATTERNS
             for path in glob.glob(os.path.join(glob.escape(HERE), pattern), recursive=True) if os.path.isfile(path)}
    return dict(sorted(found.items()))


def version() -> dict[str, str]:
    """`sha256`, of the names and contents of all files of the code, and `git_commit` if all are as committed there."""
    names = code_files()
    digests = "".join(f"{files.sha256_of(path)}  {name}\n" for name, path in names.items())
    found = {"sha256": hashlib.sha256(digests.encode()).hexdigest()}
    if _git("rev-parse", "--show-prefix") == "" and _git("status", "--porcelain", "--ignored", "--", *names) == "":
        found["git_commit"] = _git("rev-parse", "HEAD")
    return found


def _git(*words):
    """What git says of the folder of the code; None where there is no git, or no repository."""
    try:
        ended = subprocess.run(["git", "-C", HERE, *words], capture_output=True, text=True)
    except OSError:
        return None
    return ended.stdout.strip() if ended.returncode == 0 else None
