"""The plan of an evaluation, a file in its folder: what the counts depend on and how the work is divided.

It holds `inputs` (plain data, everything that the counts depend on), `codes` ((key, arch code) of the list), `images`
(how many), `chunk` (images that go through the tree at once), `piece` (images of a counts task, one or several chunks)
and `shards`. The file leaves `piece` out where it is `chunk`, as it was before there were others.
"""

import hashlib
import json
import os

from ..system import files
from ..system.errors import UserError

FORMAT = 2  # of the files; part of the fingerprint; the results of 1 had no cross-entropies and no halves
PLAN = "plan.json"
#: What messages call the `inputs` and the other parts of a fingerprint.
INPUT_NAMES = {"weights": "weights", "space": "space", "image_size": "image size", "amp": "precision",
               "validation": "validation images", "calibration": "calibration images",
               "calibration_part": "parts of calibration images", "codes": "arch list",
               "images": "number of images"}


class EarlierFormat(UserError):
    """An evaluation whose results do not hold what is counted today. plan: its plan."""

    def __init__(self, folder: str, plan: dict):
        super().__init__(f"an earlier version wrote the evaluation in {folder}, without cross-entropies; "
                         "`eval_supernet.py run` computes it again")
        self.plan = plan


def fingerprint(plan: dict, version: int = FORMAT) -> str:
    """The name of a plan's folder, a digest of everything but how the work is divided."""
    text = json.dumps({"format": version, "inputs": plan["inputs"], "codes": plan["codes"], "images": plan["images"]},
                      sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write(folder: str, plan: dict) -> None:
    """Raises `UserError` where the folder cannot be written."""
    stated = {name: value for name, value in plan.items() if name != "piece" or value != plan["chunk"]}
    files.write_json(os.path.join(folder, PLAN), {**stated, "sha256": _digest(stated)})


def _digest(plan):
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()


def read(folder: str) -> dict:
    """The plan in a folder. Raises `UserError` where there is none, or not the one that was written there."""
    path = os.path.join(folder, PLAN)
    content = files.read_json(path, "the plan of the evaluation")
    plan = dict(content) if isinstance(content, dict) else {}
    stated = plan.pop("sha256", None)
    # The name of the folder is a digest, too, but not of how the work is divided.
    if stated == _digest(plan) and plan.keys() - {"piece"} == {"inputs", "codes", "images", "chunk", "shards"} and \
            _is_sane(plan):
        if fingerprint(plan) == os.path.basename(folder):
            return {"piece": plan["chunk"], **plan}
        if any(fingerprint(plan, earlier) == os.path.basename(folder) for earlier in range(1, FORMAT)):
            raise EarlierFormat(folder, plan)
    raise UserError(f"the plan of the evaluation {path} is not the one that was written there"
                    + (", or an earlier version wrote it" if plan and stated is None else ""))


def _is_sane(plan):
    piece = plan.get("piece", plan["chunk"])
    numbers = plan["images"], plan["chunk"], plan["shards"], piece
    return isinstance(plan["inputs"], dict) and isinstance(plan["codes"], list) and \
        all(type(number) is int for number in numbers) and plan["images"] >= 0 and plan["chunk"] >= 1 and \
        piece >= 1 and piece % plan["chunk"] == 0 and 1 <= plan["shards"] <= max(1, len(plan["codes"]))


def unlike(root: str, plan: dict) -> str | None:
    """Why the evaluations below `root` are not this one: by the inputs that differ from the most similar one."""
    differences = []
    for folder in journals(root):
        reasons = []
        try:
            other = read(folder)
        except EarlierFormat as error:
            other, reasons = error.plan, ["an earlier version wrote it, without cross-entropies"]
        except UserError:
            differences.append((len(INPUT_NAMES), folder, "an earlier version wrote it, or its plan is damaged"))
            continue
        found = [name for name in ("codes", "images") if other[name] != json.loads(json.dumps(plan[name]))]
        found += [name for name in {**other["inputs"], **plan["inputs"]}
                  if other["inputs"].get(name) != json.loads(json.dumps(plan["inputs"].get(name)))]
        if "validation" in found and "images" in found:
            found.remove("images")
        if found:
            reasons.append("other " + ", ".join(INPUT_NAMES.get(name, name) for name in sorted(found)))
        differences.append((len(found), folder, "; ".join(reasons)))
    if not differences:
        return None
    _, folder, why = min(differences, key=lambda each: each[0])
    return f"the evaluation in {folder} does not count for this one: {why}"


def journals(root: str) -> list[str]:
    """The folders of the evaluations below `root`, the one that was worked on last at the end."""
    try:
        found = [entry.path for entry in os.scandir(root) if os.path.exists(os.path.join(entry.path, PLAN))]
        return sorted(found, key=lambda folder: os.stat(folder).st_mtime)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"cannot read the folder {root}: {error.strerror or error}") from error
