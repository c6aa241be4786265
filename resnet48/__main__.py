"""Arch codes, what is kept on disk, and the study of which recipe ranks best.

    python -m resnet48 describe CODE
    python -m resnet48 sample N --output list.json [--spread]
    python -m resnet48 cache --cache_dir DIR [--days 30] [--remove all]
    python -m resnet48 study FILE.yaml [--processes 2]
"""

import os
import sys
import time

import numpy as np

from .evaluation import journal, journal_plan
from .images import cache_files
from .space import space_file
from .space.arch import ArchConfig, ArchError
from .study import archs
from .system import config, files, locks, machine, options, signals, streams
from .system.errors import UserError, exit_on_user_error

#: The setting that the word right after a command gives, so that it needs no flag.
FIRST_WORD = {"describe": "arch", "sample": "count", "study": "config"}


def describe(settings) -> None:
    """describe CODE: widths, MACs and parameters of one arch, stage by stage."""
    config.require(settings, "arch")
    space = space_file.of(settings)
    arch = ArchConfig.parse(settings.arch, space, allow_untied=True)
    print(f"{arch.code} at {settings.image_size} px, {settings.num_classes} classes\n")
    print(_aligned(_rows(arch, settings.image_size, settings.num_classes)))
    try:
        arch.require_tied(settings.arch)
    except ArchError as error:
        print(f"\nOnly as a standalone net: {error}")


def sample(settings) -> None:
    """sample N --output FILE: a list of N different archs, random or spread over the space, in the official format."""
    config.require(settings, "count", "output")
    files.require_writable(settings.output)
    space = space_file.find(settings.space)
    if settings.count > space.size():
        raise UserError(f"there are only {space.size()} archs in the {settings.space} space, fewer than the "
                        f"{settings.count} that were asked for")
    if settings.spread:
        tenths = archs.spread(space, settings.count, settings.seed, image_size=224, classes=1000)
        codes = [arch.code for _, _, arch in archs.in_turn(tenths)]
    else:
        rng, codes = np.random.default_rng(settings.seed), {}
        while len(codes) < settings.count:
            codes[space.sample(rng).code] = None
    # The leading 1 is the official image size code, for 224 px.
    content = {f"arch{place}": {"acc": 0.0, "arch": "1" + code} for place, code in enumerate(codes, 1)}
    files.require_output("--output", settings.output, {}, lambda path: _reason_to_keep(path, content))
    files.write_json(settings.output, content)
    print(f"wrote {settings.output}: {len(codes)} archs of the {settings.space} space"
          f"{', spread' if settings.spread else ''}, seed {settings.seed}")


def cache(settings) -> None:
    """cache --cache_dir DIR: what is kept there and when it was used last; --remove NAMES or all."""
    config.require(settings, "cache_dir")
    folder, before = settings.cache_dir, time.time() - 86400 * settings.days
    locks.remove_leftovers(folder, cache_files.owner)
    found = [each for each in cache_files.kept(folder) + _journals(folder) if not settings.days or each.used < before]
    print(_aligned([["name", "MB", "last used", "holds"], *(
        [each.name, f"{each.bytes / 1e6:.1f}", time.strftime("%Y-%m-%d %H:%M", time.localtime(each.used)), each.what]
        for each in found)]))
    if not settings.remove:
        return
    names = [each.name for each in found] if settings.remove == "all" else settings.remove.split(",")
    by_name = {each.name: each for each in found}
    for name in names:
        if name not in by_name:
            raise UserError(f"--remove {name}: {folder} lists nothing of this name")
    for each in map(by_name.get, names):
        if each.paths:
            cache_files.remove(folder, each)
        else:
            journal.remove(os.path.join(folder, each.name))
    print(f"removed {len(names)}, {sum(by_name[name].bytes for name in names) / 1e6:.1f} MB")


def study(settings) -> None:
    """study FILE.yaml: train archs and supernets, and report which recipe ranks best; goes on where it stopped."""
    machine.prepare(cpus=1)  # a process is one training, and two of one thread use two cores best
    signals.hold()  # while Paddle is imported
    from .study import runner  # here: the other commands need no Paddle

    runner.run(settings)


def _journals(root):
    return [cache_files.Kept(os.path.basename(folder), "an evaluation",
                             sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()),
                             os.stat(folder).st_mtime, ())
            for folder in journal_plan.journals(root)]


def main(argv: list[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if len(argv) > 1 and argv[0] in FIRST_WORD and not argv[1].startswith("-"):
        argv.insert(1, f"--{FIRST_WORD[argv[0]]}")
    function, settings = config.command_line(__doc__.splitlines()[0], {
        "describe": (describe, options.DescribeSettings, None), "sample": (sample, options.SampleSettings, None),
        "cache": (cache, options.CacheSettings, None), "study": (study, options.StudySettings, None)}, argv)
    function(settings)


def _reason_to_keep(path, content):
    """Why the file at `path` must not be replaced by the list `content`, as the end of a sentence; None if it may."""
    try:
        same = files.read_json(path, "file") == content
    except UserError:
        same = False
    return None if same else "is there already and is another file"


def _rows(arch, image_size, num_classes):
    """The table as lists of words: a heading, then stem, stages, classifier and total."""
    convolutions = arch.convolutions(image_size)
    rows = [["", "output", "MACs", "parameters", "widths"]]
    for stage, pairs in enumerate([(), *arch.stages]):
        name = f"stage {stage}" if stage else "stem"
        widths = " ".join(f"{inner}-{outer}" for inner, outer in pairs) if stage else str(arch.stem)
        own = [conv for conv in convolutions if conv.stage == stage]
        rows.append([name, f"{own[-1].size}x{own[-1].size}", f"{sum(conv.macs for conv in own):,}",
                     f"{sum(conv.params for conv in own):,}", widths])
    (linear,) = arch.head(num_classes).layers()
    rows.append(["classifier", "1x1", f"{linear.macs:,}", f"{linear.params:,}", str(num_classes)])
    rows.append(["total", "", f"{arch.macs(image_size, num_classes):,}", f"{arch.params(num_classes):,}", ""])
    return rows


def _aligned(rows):
    """Rows as text: the first and last column to the left, the others to the right."""
    sizes = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join([row[0].ljust(sizes[0]), *map(str.rjust, row[1:-1], sizes[1:-1]), row[-1]]).rstrip()
                     for row in rows)


if __name__ == "__main__":
    sys.argv[0] = "python -m resnet48"  # the help calls a program by this name, which would be __main__.py
    streams.outlive_readers()
    exit_on_user_error(main)
