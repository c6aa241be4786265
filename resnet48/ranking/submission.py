"""The submission: write it, record what it was made of, verify it. No Paddle in here.

Its format is that of the arch list, `{"arch1": {"acc": 0.0, "arch": "1252..."}, ...}`, with the list's keys, their
order and the code strings; `acc` is the top-1 accuracy in percent. The manifest beside a submission says what it was
made of.
"""

import os
import re
from collections.abc import Callable, Sequence

import numpy as np

from ..space import description
from ..space.arch import ANY, FULL, ArchConfig, SearchSpace
from ..space.arch_list import Entry, entry_problem, json_kind, read_accuracies, read_list, read_object
from ..space.checks import check_image_size
from ..system import files
from ..system.errors import UserError, quoted, shown
from . import counts_file

MANIFEST = ".manifest.json"


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
            raise ValueError(f"the accuracy of {quoted(key)} is {accuracy}, allowed is 0..100 percent")
        if key in content:
            raise ValueError(f"the key {quoted(key)} occurs twice among the entries")
        content[key] = {"acc": float(accuracy), "arch": code}
    files.write_json(path, content)


def write_submission(path: str, arch_list: str, checkpoint: str, entries: Sequence[Entry], chosen: Sequence[Entry],
                     counts: np.ndarray, images: int, about: dict, unfinished: str | None = None) -> str:
    """Write the submission for the `chosen` of a list's entries, with counts and manifest beside it; returns a line for
    the log.

    counts: float64 [archs, 6], of the chosen entries on `images` images, see `counts_file.write`. about: the rest of
    the manifest, see `write_manifest`. unfinished: how far the supernet's training was, where it was not finished.
    """
    accuracies = [100 * int(top1) / images for top1 in counts[:, 0]]
    partial = len(chosen) < len(entries)
    counts_file.write(path, chosen, counts, images)  # first, so that a submission is never there without
    write_accuracies(path, chosen, accuracies)
    write_manifest(path, arch_list, checkpoint, archs=len(chosen), partial=partial, val_images=images,
                   unfinished=unfinished, **about)
    return (f"wrote {path}: {len(chosen)} archs on {images} images, top-1 {min(accuracies):.2f} to "
            f"{max(accuracies):.2f} %"
            + (f"; PARTIAL: {len(chosen)} of the list's {len(entries)} archs" if partial else "")
            + (f"; UNFINISHED TRAINING: {unfinished}" if unfinished else ""))


def write_partial(path: str, codes: Sequence[list], counts: np.ndarray, images: int, planned: int) -> str:
    """Write a submission from an evaluation that may be unfinished, on the `images` it has seen; returns a line for the
    log.

    planned: how many images it will see. codes: [key, code] of each arch. counts: as for `write_submission`. It has no
    manifest, so `verify` will not take it for a finished one.
    """
    if not images:
        raise UserError("no piece of the images is done for all archs yet, so there is nothing to write")
    entries = [Entry(key, code, None) for key, code in codes]
    counts_file.write(path, entries, counts, images)
    write_accuracies(path, entries, [100 * int(top1) / images for top1 in counts[:, 0]])
    state = f"UNFINISHED: on {images} of {planned} images so far" if images < planned else f"on all {images} images"
    return f"wrote {path}: {len(codes)} archs, {state}"


def side_files(submission: str) -> list[str]:
    """What is written beside a submission: counts and manifest."""
    return [files.beside(submission, ending) for ending in (counts_file.ENDING, MANIFEST)]


def require_outputs(output: str, arch_list: str, weights_file: str, archs: Sequence[ArchConfig]) -> None:
    """Refuse to write a submission of `archs` over what its evaluation reads, or over a file that holds more.

    output, arch_list, weights_file: paths. Raises `UserError` as `files.require_output` does.
    """
    files.require_output("--output", output, {"--checkpoint": weights_file}, lambda path: reason_to_keep(path, archs))
    for path in side_files(output):  # the list itself may be filled in place
        files.require_output("what belongs to --output,", path, {"--checkpoint": weights_file, "--archs": arch_list})


def manifest_path(submission: str) -> str:
    """Where the manifest of a submission lies: `out/best.json` has `out/best.manifest.json`.

    One that an earlier version wrote without what followed the last dot of a name, `sub.v1.manifest.json` for
    `sub.v1.0`, is found if it is about this very submission.
    """
    path, earlier = files.beside(submission, MANIFEST), os.path.splitext(submission)[0] + MANIFEST
    if path != earlier and not os.path.exists(path) and os.path.exists(submission) and _is_about(earlier, submission):
        return earlier
    return path


def reason_to_keep(path: str, archs: Sequence[ArchConfig], finished_too: bool = False,
                   made_by: Callable[[ArchConfig], bool] | None = None) -> str | None:
    """Why the file at `path` must not be replaced with accuracies of `archs`; None if nothing would be lost.

    A list without accuracies may be filled in place, as a whole, and what an evaluation has written may be written
    again, but a complete submission only with all of its archs. finished_too: whether a submission with a manifest must
    stay. made_by(arch): whether the accuracy of an arch is one that would be measured again, instead of asking for the
    counts and the manifest of an evaluation.
    """
    try:
        entries, accuracies = read_accuracies(path, "file", ANY)
    except UserError:
        return "is there already and is neither an arch list nor a submission"
    kept = {arch.code for arch in archs}
    lost = sum(entry.arch.code not in kept for entry in entries)
    finished = _is_about(manifest_path(path), path)
    if finished and finished_too:
        return "is a submission that is finished"
    if made_by:
        ours = all(made_by(entry.arch) for entry, accuracy in zip(entries, accuracies) if accuracy)
    else:
        ours = finished or counts_file.belong(path, {entry.arch.code: accuracy
                                                     for entry, accuracy in zip(entries, accuracies)})
        if ours and lost and (not finished or files.read_json(manifest_path(path), "manifest").get("partial")):
            return None
    if lost:
        return f"is there already and holds {lost} archs (of {len(entries)}) that would not be in the new file"
    if not ours and any(accuracies):
        return "is there already and holds accuracies from elsewhere, such as a truth"
    return None


def write_manifest(submission: str, arch_list: str, checkpoint: str, net: dict, settings: dict, archs: int,
                   partial: bool, val_images: int, image_size: int, versions: dict[str, str],
                   unfinished: str | None = None, images: dict | None = None) -> str:
    """Write the manifest beside the submission at `submission`: what it was made of. Returns the manifest's path.

    arch_list, checkpoint: a path, or the SHA-256 as 64 hex digits where it was taken before the evaluation.
    net: what the supernet is, as plain data (`checkpoint.describe`). settings: the resolved evaluation settings.
    archs: how many were scored. partial: whether the list has more. val_images: how many validation images each
    accuracy counts, of image_size pixels. versions: package -> version.
    unfinished: how far the supernet's training was, such as "step 12 of 12000", None where it was finished.
    images: digests of the images by split.
    Raises `UserError` where a file cannot be read or the manifest cannot be written.
    """
    manifest = {
        "submission_sha256": files.sha256_of(submission),
        "arch_list_sha256": _digest(arch_list),
        "checkpoint_sha256": _digest(checkpoint),
        "archs": archs,
        "partial": partial,
        "unfinished_training": unfinished,
        "val_images": val_images,
        "image_size": image_size,
        "net": net,
        "settings": settings,
        "versions": versions,
        **({"images": images} if images else {}),
    }
    path = files.beside(submission, MANIFEST)
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
        raise UserError(f"manifest {shown(path)} is malformed: {error}") from error


def verify(submission_path: str, list_path: str, checkpoint_digest: str | None = None,
           allow_unfinished: bool = False) -> list[str]:
    """What is wrong with a submission: a list of sentences, empty if it is ready to submit.

    Keys, their order and the code strings must be the list's; accuracies finite, within 0..100 and not all equal;
    the manifest there, about these very files, and not about a partial run or, unless allowed, a supernet whose
    training was not finished.
    checkpoint_digest: SHA-256 (64 hex digits) of the checkpoint that it must have come from, if known.
    Raises `UserError` where a file cannot be read as JSON or the list itself is malformed.
    """
    try:
        space, _, _ = read_manifest_net(submission_path)
    except UserError:  # which is among the findings
        space = FULL
    entries = read_list(list_path, space)
    content = read_object(submission_path, "submission")
    return (_key_findings(content, entries) + _value_findings(content, entries)
            + _manifest_findings(submission_path, list_path, checkpoint_digest, allow_unfinished))


def _key_findings(content, entries):
    listed = [entry.key for entry in entries]
    known = set(listed)
    extra = [key for key in content if key not in known]
    missing = [key for key in listed if key not in content]
    findings = []
    if extra:
        findings.append(f"{len(extra)} keys are not in the list, the first is {quoted(extra[0])}")
    if missing:
        findings.append(f"the submission is partial: it lacks {len(missing)} of the list's {len(listed)} keys, "
                        f"the first is {quoted(missing[0])}")
    found = [key for key in content if key in known]
    expected = [key for key in listed if key in content]
    for key, other in zip(found, expected):
        if key != other:
            findings.append(f"the keys are not in the list's order: {quoted(key)} is where {quoted(other)} belongs")
            break
    return findings


def _value_findings(content, entries):
    """One sentence for each kind of fault, with how often it occurs and where first."""
    code_of = {entry.key: entry.code for entry in entries}
    malformed, codes, outside, accuracies = [], [], [], []
    for key, value in content.items():
        problem = entry_problem(value)
        if problem:
            malformed.append(f"{quoted(key)}: {problem}")
            continue
        if key in code_of and value["arch"] != code_of[key]:
            codes.append(f"{quoted(key)}: {shown(value['arch'])} where the list has {code_of[key]}")
        if not 0 <= value["acc"] <= 100:
            outside.append(f"{quoted(key)}: {quoted(value['acc'])}")
        accuracies.append(value["acc"])
    findings = [f"{len(faults)} {text}, the first is {faults[0]}" for faults, text in (
        (malformed, "entries are malformed"),
        (codes, "codes are not the list's"),
        (outside, "accuracies lie outside 0..100 percent")) if faults]
    if len(accuracies) > 1 and len(set(accuracies)) == 1:
        findings.append(f"all {len(accuracies)} accuracies are equal ({accuracies[0]}), so they rank nothing")
    return findings


def _manifest_findings(submission_path, list_path, checkpoint_digest, allow_unfinished):
    path = manifest_path(submission_path)
    if not os.path.exists(path):
        return [f"there is no manifest {shown(path)}, so nothing shows which checkpoint the accuracies come from"]
    try:
        manifest = files.read_json(path, "manifest")
    except UserError as error:
        return [str(error)]
    if not isinstance(manifest, dict):
        return [f"manifest {shown(path)} must be an object, found {json_kind(manifest)}"]
    findings = []
    for name, what, digest in (("submission_sha256", "submission", files.sha256_of(submission_path)),
                               ("arch_list_sha256", "arch list", files.sha256_of(list_path)),
                               ("checkpoint_sha256", "checkpoint", checkpoint_digest)):
        stated = manifest.get(name)
        if not _is_digest(stated):
            findings.append(f"manifest {shown(path)}: `{name}` must be 64 hex digits, found {quoted(stated)}")
        elif digest is not None and stated.lower() != digest.lower():
            findings.append(f"manifest {shown(path)} was written for another {what}: `{name}` is {stated}, "
                            f"the {what} given has {digest}")
    if manifest.get("partial") is not False:
        findings.append(f"manifest {shown(path)} does not say that the run was complete: `partial` is "
                        f"{quoted(manifest.get('partial'))}, `archs` is {quoted(manifest.get('archs'))}")
    unfinished = manifest.get("unfinished_training")  # manifests of earlier versions do not say
    if unfinished is not None and not allow_unfinished:
        findings.append(f"the training of the supernet was not finished ({shown(str(unfinished))}): finish it and "
                        "evaluate again, or say --allow_unfinished")
    return findings


def _digest(source):
    return source.lower() if _is_digest(source) else files.sha256_of(source)


def _is_digest(text):
    return isinstance(text, str) and re.fullmatch("[0-9a-fA-F]{64}", text) is not None


def _is_about(manifest, submission):
    """Whether there is a manifest at that path that was written for this submission as it is."""
    try:
        content = files.read_json(manifest, "manifest")
        return isinstance(content, dict) and content.get("submission_sha256") == files.sha256_of(submission)
    except UserError:
        return False
