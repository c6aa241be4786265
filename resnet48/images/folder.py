"""An image folder in ImageNet's layout: which files are its images, and what is left out. No Paddle in here.

Only regular files are images, or links to them: a pipe or a device has no end. A link to nothing stays in the list, so
that whoever decodes it names it. Names need not be UTF-8.
"""

import collections
import os
import unicodedata

from ..system.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


class LeftOut:
    """What is in a folder and not an image of it: how many of each kind, and the first path."""

    def __init__(self):
        self.kinds, self.first = collections.Counter(), None

    def add(self, kind: str, path: str) -> None:
        self.kinds[kind] += 1
        self.first = self.first or path

    def note(self, root: str) -> str | None:
        """One sentence, or None where nothing is left out."""
        if not self.kinds:
            return None
        parts = ", ".join(f"{count} {kind}" for kind, count in sorted(
            self.kinds.items(), key=lambda item: (-item[1], item[0])))
        return (f"{sum(self.kinds.values())} entries of {root} are not used: {parts}; "
                f"the first is {os.path.relpath(self.first, root)}; images are regular files in train/<class>/ and "
                f"val/<class>/ that end in {', '.join(EXTENSIONS)}")


def images_by_class(root: str) -> tuple[dict[str, list[str]], dict[str, list[str]], LeftOut]:
    """Class -> sorted paths of its images, for train/ and for val/, and what is left out.

    Both have the same classes, in sorted order. Raises `UserError` for a folder of another layout or one that cannot be
    read, a class without images, and a class that is a link to nothing.
    """
    left_out = LeftOut()
    train, val = (_classes(root, part, left_out) for part in ("train", "val"))
    _require_same_classes(root, train, val)
    return (*({name: _images(folders[name], left_out) for name in sorted(folders)} for folders in (train, val)),
            left_out)


def _classes(root, part, left_out):
    folder, found = os.path.join(root, part), {}
    if not os.path.isdir(folder):
        raise UserError(f"--image_dir {root} has no folder {part}/; it must hold train/<class>/ and val/<class>/")
    for entry in _entries(folder):
        if entry.name.startswith("."):
            left_out.add("hidden", entry.path)
        elif entry.is_symlink() and not os.path.exists(entry.path):
            raise UserError(f"{entry.path} is a link to {os.readlink(entry.path)}, which is not there or cannot be "
                            "reached; mount what it is on, or remove the link")
        elif os.path.isdir(entry.path):
            found[entry.name] = entry.path
        else:
            left_out.add("outside of class folders", entry.path)
    if not found:
        raise UserError(f"{folder} holds no class folders")
    return found


def _entries(folder):
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror or error}") from error


def _require_same_classes(root, train, val):
    differing = sorted(train.keys() ^ val.keys())
    if not differing:
        return
    first, where = differing[0], "train" if differing[0] in train else "val"
    same = [name for name in differing[1:] if _composed(name) == _composed(first)]
    hint = ""
    if same:
        hint = (f" and as {same[0].encode(errors='surrogateescape')!r} in the other, which looks the same but is "
                "another Unicode normalisation (NFC, NFD): rename one of them")
    raise UserError(f"train/ and val/ in {root} must hold the same class folders; {len(differing)} differ, the first "
                    f"is {first!r}, only in {where}/"
                    + (f", written as {first.encode(errors='surrogateescape')!r}{hint}" if same else ""))


def _composed(name):
    return unicodedata.normalize("NFC", name)


def _images(folder, left_out):
    paths = []
    for entry in _entries(folder):
        ending = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith("."):
            left_out.add("hidden", entry.path)
        elif os.path.isdir(entry.path):
            left_out.add("folders in a class folder", entry.path)
        elif not entry.name.lower().endswith(EXTENSIONS):
            left_out.add(f"with the ending {ending}" if ending else "without an ending", entry.path)
        elif os.path.isfile(entry.path) or entry.is_symlink() and not os.path.exists(entry.path):
            paths.append(entry.path)
        else:
            left_out.add("no regular files", entry.path)
    if not paths:
        raise UserError(f"{folder} holds no images ({', '.join(EXTENSIONS)})")
    return paths
