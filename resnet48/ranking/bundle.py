"""The bundle: what the contest asks of the top teams, in one archive. No Paddle in here.

Rule 8: the pretrained supernet, the script that makes the submission from it, and the code that repeats its training.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

from ..system import archives, code_version, config, files
from ..system.options import EvalSettings, SupernetSettings
from . import counts_file, provenance, submission

FORMAT = "resnet48 bundle"
ABOUT, SUMS = "bundle.json", "SHA256SUMS"
SUPERNET, RETRAINED, REPEATED = "supernet", "repeated/supernet", "repeated/submission.json"

README = """# How this submission was made

`submission.json` holds the accuracies of the {archs} archs of `archs.json`, measured on {images} images with the
weights of one supernet, `supernet.pdparams`. Beside it lie the counts behind the accuracies and the manifest, which
binds the three by their SHA-256; `{sums}` has those of all files here (`sha256sum -c {sums}`). `code/` is the code that
wrote this archive: {code}. The evaluation ran with {versions}; `code/requirements.txt` (with a GPU) and
`code/requirements-cpu.txt` say what to install.

In this folder, these two commands repeat the training and the evaluation, with the settings of `training.yaml` and
`evaluation.yaml`{placeholder}:

    {train}
    {evaluate}

`repeated/submission.json` then is `submission.json` again, byte for byte on the same machine with the same libraries.
Without training, this checks the submission and evaluates 20 of its archs again with the supernet that is here:

    {verify}
"""


def reason_to_keep(path: str) -> str | None:
    """Why the file at `path` must not be replaced by a bundle; None for an earlier bundle."""
    name, content = archives.first_member(path) or (None, b"")
    try:
        if name == ABOUT and json.loads(content)["format"] == FORMAT:
            return None
    except (ValueError, TypeError, KeyError):
        pass
    return "is there already and is not a bundle that `eval_supernet.py bundle` wrote"


def write(path: str, submitted: str, arch_list: str, training: SupernetSettings, ranks: int, image_dir: str | None,
          trained: Mapping[str, bytes | str]) -> str:
    """Write the bundle of a submission that `submission.verify` finds nothing wrong with; returns a line for the log.

    submitted, arch_list: paths of submission and list. training, ranks, image_dir, trained: of `training.portable`:
    settings that repeat the training, the number of its processes, the name of its folder of images (None for a set
    that needs none), and weights and state of the supernet and what the training has read, as members.
    Raises `UserError` where a file is missing or the archive cannot be written.
    """
    evaluation, _ = provenance.evaluation(submitted)
    evaluation = dataclasses.replace(
        config.without_paths(evaluation, {"checkpoint": RETRAINED, "archs": "archs.json", "output": REPEATED}),
        fresh=False, dry_run=False)
    provenance.counts(submitted, submission.read_manifest_net(submitted)[0])  # they are there, and the submission's
    counts = files.beside(submitted, counts_file.ENDING)
    manifest = files.read_json(submission.manifest_path(submitted), "manifest")
    digests = {name: manifest[name] for name in ("submission_sha256", "arch_list_sha256", "checkpoint_sha256")}
    version = code_version.version()
    members = {
        "README.md": readme(manifest, ranks, image_dir, version).encode(),
        "submission.json": submitted,
        "submission.counts.json": counts,
        "submission.manifest.json": json.dumps({**manifest, "settings": config.as_data(evaluation)}, indent=2).encode(),
        "archs.json": arch_list,
        **trained,
        "training.yaml": config.dump(training).encode(),
        "evaluation.yaml": config.dump(evaluation).encode(),
        **{f"code/{name}": place for name, place in code_version.code_files().items()},
    }
    about = {ABOUT: json.dumps({"format": FORMAT, "code": version, **digests}, indent=2).encode()}
    sums = "".join(f"{_sha256(content)}  {name}\n" for name, content in {**about, **members}.items())
    archives.write(path, {**about, SUMS: sums.encode(), **members})
    return f"wrote {path}: {len(members) + 2} files; README.md in it says how to repeat the training and the evaluation"


def readme(manifest: dict, ranks: int, image_dir: str | None, version: dict[str, str]) -> str:
    """The README of a bundle, with the commands that repeat it. Arguments as for `write`; version: of the code."""
    given = " --image_dir IMAGES" if image_dir else ""
    launched = f"-m paddle.distributed.launch --nproc_per_node {ranks} " if ranks > 1 else ""
    commit = f"git commit {version['git_commit']}, " if "git_commit" in version else ""
    return README.format(
        archs=manifest["archs"], images=manifest["val_images"], sums=SUMS,
        code=f"{commit}SHA-256 of its files {version['sha256']}",
        versions=", ".join(f"{name} {number}" for name, number in manifest["versions"].items()),
        placeholder=f"; IMAGES is your copy of the folder of images, which was called {image_dir}" if image_dir else "",
        train=f"python3 {launched}code/train_supernet.py run --config training.yaml{given}",
        evaluate=f"python3 code/eval_supernet.py run --config evaluation.yaml{given}",
        verify="python3 code/eval_supernet.py verify --submission submission.json --archs archs.json --checkpoint "
               f"{SUPERNET}.pdparams --recheck 20{given}")


def _sha256(content):
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else files.sha256_of(content)
