"""The submission: write it, record what it was made of, verify it. No Paddle in here.

Its format is that of the arch list, `{"arch1": {"acc": 0.0, "arch": "1252..."}, ...}`, with the list's keys, their
order and the code strings; `acc` is the top-1 accuracy in percent. The manifest beside a submission says what it was
made of.
"""

import os
import re
from collections.abc import Sequence

from ..space import description
from ..space.arch import FULL, SearchSpace
from ..space.arch_list import Entry, entry_problem, json_kind, read_list, read_object
from ..space.checks import check_image_size, short
from ..system import files
from ..system.errors import UserError


def write_accuracies(path: str, entries: Sequence[Entry], accuracies: Sequence[float]) -> None:
    """Write a submission, whole or not at all.

    entries: `Entry` objects in the list's order. accuracies: as many numbers, top-1 in percent.
    Raises `ValueError` for a wrong number of accuracies, one that is not within 0..100, or a key that occurs twice, and
    `UserError` where the file cannot be written.
    """
    if len(entries) != len(accuracies):
        raise ValueError(f"{len(entries)} archs need as many accuracies, got {len(accuracies)}")
    content = {}
    for (key, code, _), accuracy in zip(entries, accuracies):
        if not 0 <= accuracy <= 100:  # also catches NaN
            raise ValueError(f"the accuracy of {key!r} is {accuracy}, allowed is 0..100 percent")
        if key in content:
            raise ValueError(f"the key {key!r} occurs twice among the entries")
        content[key] = {"acc": float(accuracy), "arch": code}
    files.write_json(path, content)


def write_counts(submission: str, entries: Sequence[Entry], counts: Sequence[tuple[int, int]], images: int) -> None:
    """Keep the counts behind a submission beside it, as `<submission>.counts.json`: hits in `images` images.

    counts: (top-1, top-5) per entry.
    """
    content = {entry.key: {"arch": entry.code, "top1": int(top1), "top5": int(top5)}
               for entry, (top1, top5) in zip(entries, counts)}
    files.write_json(os.path.splitext(submission)[0] + ".counts.json", {"images": images, "counts": content})


def write_submission(path: str, arch_list: str, checkpoint: str, entries: Sequence[Entry], chosen: Sequence[Entry],
                     counts: Sequence[tuple[int, int]], images: int, about: dict) -> str:
    """Write the submission for the `chosen` of a list's entries, with counts and manifest beside it; returns a line for
    the log.

    counts: (top-1, top-5) of each chosen entry in `images` images. about: the rest of the manifest, see
    `write_manifest`.
    """
    accuracies = [100 * int(top1) / images for top1, _ in counts]
    partial = len(chosen) < len(entries)
    write_accuracies(path, chosen, accuracies)
    write_counts(path, chosen, counts, images)
    write_manifest(path, arch_list, checkpoint, archs=len(chosen), partial=partial, val_images=images, **about)
    return (f"wrote {path}: {len(chosen)} archs on {images} images, top-1 {min(accuracies):.2f} to "
            f"{max(accuracies):.2f} %"
            + (f"; PARTIAL: {len(chosen)} of the list's {len(entries)} archs" if partial else ""))


def write_partial(path: str, codes: Sequence[list], counts: Sequence[tuple[int, int]], images: int,
                  planned: int) -> str:
    """Write a submission from an evaluation that may be unfinished, on the `images` it has seen; returns a line for the
    log.

    planned: how many images it will see. codes: [key, code] of each arch. It has no manifest, so
    `verify` will not take it for a finished one.
    """
    if not images:
        raise UserError("no chunk of images is done for all archs yet, so there is nothing to write")
    write_accuracies(path, [Entry(key, code, None) for key, code in codes],
                     [100 * int(top1) / images for top1, _ in counts])
    state = f"UNFINISHED: on {images} of {planned} images so far" if images < planned else f"on all {images} images"
    return f"wrote {path}: {len(codes)} archs, {state}"


def manifest_path(submission: str) -> str:
    """Where the manifest of a submission lies: `out/submission.json` has `out/submission.manifest.json`."""
    return os.path.splitext(submission)[0] + ".manifest.json"


def write_manifest(submission: str, arch_list: str, checkpoint: str, net: dict, settings: dict, archs: int,
                   partial: bool, val_images: int, image_size: int, versions: dict[str, str]) -> str:
    """Write the manifest beside the submission at `submission`: what it was made of. Returns the manifest's path.

    arch_list, checkpoint: a path, or the SHA-256 as 64 hex digits where it was taken before the evaluation.
    net: what the supernet is, as plain data (`checkpoint.describe`). settings: the resolved evaluation settings.
    archs: how many were scored. partial: whether the list has more. val_images: how many validation images each
    accuracy counts, of image_size pixels. versions: package -> version.
    Raises `UserError` where a file cannot be read or the manifest cannot be written.
    """
    manifest = {
        "submission_sha256": files.sha256_of(submission),
        "arch_list_sha256": _digest(arch_list),
        "checkpoint_sha256": _digest(checkpoint),
        "archs": archs,
        "partial": partial,
        "val_images": val_images,
        "image_size": image_size,
        "net": net,
        "settings": settings,
        "versions": versions,
    }
    path = manifest_path(submission)
    files.write_json(path, manifest, indent=2)
    return path


def read_manifest_net(submission: str) -> tuple[SearchSpace, int, int]:
    """(space, image size, classes) of the supernet behind a submission, by its manifest; the official ones without.

    Raises `UserError` for a manifest that is malformed.
    """
    path = manifest_path(submission)
    if not os.path.exists(path):
        return FULL, 224, 1000
    manifest = files.read_json(path, "manifest")
    try:
        if not isinstance(manifest, dict):
            raise UserError(f"it must be an object, found {json_kind(manifest)}")
        space, classes = description.read(manifest.get("net"))
        if not isinstance(space, SearchSpace):
            raise UserError("it names a standalone net, and accuracies are submitted of a supernet")
        return space, check_image_size(manifest.get("image_size")), classes
    except UserError as error:
        raise UserError(f"manifest {path} is malformed: {error}") from error


def verify(submission_path: str, list_path: str, checkpoint_digest: str | None = None) -> list[str]:
    """What is wrong with a submission: a list of sentences, empty if it is ready to submit.

    Keys, their order and the code strings must be the list's; accuracies finite, within 0..100 and not all equal;
    the manifest there, about these very files, and not about a partial run.
    checkpoint_digest: SHA-256 (64 hex digits) of the checkpoint that it must have come from, if known.
    Raises `UserError` where a file cannot be read as JSON or the list itself is malformed.
    """
    entries = read_list(list_path)
    content = read_object(submission_path, "submission")
    return (_key_findings(content, entries) + _value_findings(content, entries)
            + _manifest_findings(submission_path, list_path, checkpoint_digest))


def _key_findings(content, entries):
    listed = [entry.key for entry in entries]
    known = set(listed)
    extra = [key for key in content if key not in known]
    missing = [key for key in listed if key not in content]
    findings = []
    if extra:
        findings.append(f"{len(extra)} keys are not in the list, the first is {extra[0]!r}")
    if missing:
        findings.append(f"the submission is partial: it lacks {len(missing)} of the list's {len(listed)} keys, "
                        f"the first is {missing[0]!r}")
    found = [key for key in content if key in known]
    expected = [key for key in listed if key in content]
    for key, other in zip(found, expected):
        if key != other:
            findings.append(f"the keys are not in the list's order: {key!r} is where {other!r} belongs")
            break
    return findings


def _value_findings(content, entries):
    """One sentence for each kind of fault, with how often it occurs and where first."""
    code_of = {entry.key: entry.code for entry in entries}
    malformed, codes, outside, accuracies = [], [], [], []
    for key, value in content.items():
        problem = entry_problem(value)
        if problem:
            malformed.append(f"{key!r}: {problem}")
            continue
        if key in code_of and value["arch"] != code_of[key]:
            codes.append(f"{key!r}: {value['arch']} where the list has {code_of[key]}")
        if not 0 <= value["acc"] <= 100:
            outside.append(f"{key!r}: {value['acc']}")
        accuracies.append(value["acc"])
    findings = [f"{len(faults)} {text}, the first is {faults[0]}" for faults, text in (
        (malformed, "entries are malformed"),
        (codes, "codes are not the list's"),
        (outside, "accuracies lie outside 0..100 percent")) if faults]
    if len(accuracies) > 1 and len(set(accuracies)) == 1:
        findings.append(f"all {len(accuracies)} accuracies are equal ({accuracies[0]}), so they rank nothing")
    return findings


def _manifest_findings(submission_path, list_path, checkpoint_digest):
    path = manifest_path(submission_path)
    if not os.path.exists(path):
        return [f"there is no manifest {path}, so nothing shows which checkpoint the accuracies come from"]
    try:
        manifest = files.read_json(path, "manifest")
    except UserError as error:
        return [str(error)]
    if not isinstance(manifest, dict):
        return [f"manifest {path} must be an object, found {json_kind(manifest)}"]
    findings = []
    for name, what, digest in (("submission_sha256", "submission", files.sha256_of(submission_path)),
                               ("arch_list_sha256", "arch list", files.sha256_of(list_path)),
                               ("checkpoint_sha256", "checkpoint", checkpoint_digest)):
        stated = manifest.get(name)
        if not _is_digest(stated):
            findings.append(f"manifest {path}: `{name}` must be 64 hex digits, found {short(stated)}")
        elif digest is not None and stated.lower() != digest.lower():
            findings.append(f"manifest {path} was written for another {what}: `{name}` is {stated}, "
                            f"the {what} given has {digest}")
    if manifest.get("partial") is not False:
        findings.append(f"manifest {path} does not say that the run was complete: `partial` is "
                        f"{short(manifest.get('partial'))}, `archs` is {short(manifest.get('archs'))}")
    return findings


def _digest(source):
    return source.lower() if _is_digest(source) else files.sha256_of(source)


def _is_digest(text):
    return isinstance(text, str) and re.fullmatch("[0-9a-fA-F]{64}", text) is not None
