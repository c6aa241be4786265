"""The evaluator against the plain reference that runs each arch on its own, and what its pieces are named by."""

import os
import shutil

import numpy as np
import paddle
import pytest
from commands import image_folder

from resnet48 import data, evaluate, runtime, sweep, tree, walk
from resnet48.arch import FULL, POOL, ArchConfig
from resnet48.config import EvalConfig
from resnet48.errors import UserError
from resnet48.journal import Journal
from resnet48.models import Supernet
from resnet48.submission import Entry

WIDTHS = (4, 8, 16, 32)
SPACES = {"pool": POOL.narrowed(WIDTHS, 1), "full": FULL.narrowed(WIDTHS, 1),
          "two channels": FULL.narrowed((2, 2, 4, 4), 1)}
LISTS = ["random", "one", "same beginnings", "within one another", "same widths"]
CLASSES = 7
NAMES = tuple(map(str, range(CLASSES)))


@pytest.fixture(scope="module")
def images():
    """90 validation and 70 training images, 32 pixels, in seven classes: noise around many different levels."""
    rng = np.random.default_rng(1)

    def split(count):
        levels = rng.uniform(0, 200, (count, 4, 4, 3)).repeat(10, axis=1).repeat(10, axis=2)[:, :37, :37]
        return data.Split((levels + rng.uniform(0, 55, levels.shape)).astype("uint8"), rng.integers(0, CLASSES, count))

    return data.ImageSet("noise", NAMES, split(70), split(90), 32)


def supernet(space, seed=0):
    """A net that has learnt nothing, with running statistics that fit its largest arch."""
    paddle.seed(seed)
    rng, net = np.random.default_rng(seed), Supernet(space, CLASSES)
    for name, value in net.state_dict().items():
        if "bn" in name and name.endswith(("weight", "bias")):
            value.set_value(rng.uniform(0.5, 1.5, value.shape).astype("float32"))
    net.eval()
    evaluate.calibrate(net, space.largest(), rng.integers(0, 256, (50, 3, 32, 32), "uint8")).store()
    return net


@pytest.fixture(scope="module")
def net():
    return supernet(SPACES["pool"])


def archs_of(space, kind):
    """Some archs of a space that have this in common."""
    rng = np.random.default_rng(2)
    if kind == "one":
        return [space.sample(rng)]
    if kind == "random":
        return [space.sample(rng) for _ in range(12)]
    if kind == "same beginnings":
        arch = next(arch for arch in iter(lambda: space.sample(rng), None) if arch.depths[3] == 3)
        return [ArchConfig.parse(arch.code[:45] + digit + arch.code[46:], space) for digit in space.codes[4]]
    if kind == "within one another":
        return [ArchConfig.parse(f"23{third}{fourth}1" + "1111".ljust(10, "0") + "313131".ljust(10, "0")
                                 + ("2" * 2 * third).ljust(16, "0") + ("1" * 2 * fourth).ljust(10, "0"), space)
                for third, fourth in ((4, 5), (4, 3), (3, 2), (4, 2))]
    code = space.largest().code
    return [ArchConfig.parse(code[:5] + digit + code[6:], space) for digit in "12"]  # both 4 channels, or both 2


def evaluated(root, net, archs, images, digest="weights", **settings):
    """Counts and number of images of an evaluation over the tree, below `root`."""
    config = EvalConfig(**{"calib_images": 28, "chunk": 32, **settings})
    journal = opened(root, net, archs, images, digest, config)
    return sweep.run(net, journal, tree.walk(archs), images, config)


def opened(root, net, archs, images, digest="weights", config=EvalConfig(calib_images=28, chunk=32)):
    entries = [Entry(f"arch{place}", arch.code, arch) for place, arch in enumerate(archs)]
    return sweep.open_journal(str(root), digest, entries, tree.walk(archs), images, net, config)


def one_by_one(net, archs, images, **settings):
    return sweep.counts_one_by_one(net, archs, images, EvalConfig(**{"calib_images": 28, **settings}))


def assert_same(found, expected):
    assert found[1] == expected[1]
    assert np.array_equal(found[0], expected[0])


# ---- the same counts as each arch on its own

@pytest.mark.parametrize("calib_images", [28, 0])
@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("space", SPACES)
def test_the_counts_are_those_of_each_arch_on_its_own(tmp_path, images, monkeypatch, space, kind, calib_images):
    monkeypatch.setattr(sweep, "ARCHS_PER_SHARD", 5)
    net, archs = supernet(SPACES[space]), archs_of(SPACES[space], kind)
    found = evaluated(tmp_path, net, archs, images, calib_images=calib_images)
    assert_same(found, one_by_one(net, archs, images, calib_images=calib_images))
    assert found[0].shape == (len(archs), 2) and found[1] == 90
    if calib_images and kind not in ("one", "same widths"):
        assert len(set(map(tuple, found[0]))) > 1  # the images do tell the archs apart


@pytest.mark.parametrize("chunk", [2, 89, 90, 1000, None])
@pytest.mark.parametrize("archs_per_shard", [1, 5, 500])
def test_chunks_and_shards_of_any_size_give_the_same_counts(tmp_path, images, net, monkeypatch, chunk, archs_per_shard):
    monkeypatch.setattr(sweep, "ARCHS_PER_SHARD", archs_per_shard)
    archs = archs_of(SPACES["pool"], "random")[:6]
    assert_same(evaluated(tmp_path, net, archs, images, chunk=chunk), one_by_one(net, archs, images))


@pytest.mark.parametrize("val_images", [1, 20, 1000])
def test_so_many_validation_images_are_counted(tmp_path, images, net, val_images):
    archs = archs_of(SPACES["pool"], "random")[:3]
    found = evaluated(tmp_path, net, archs, images, val_images=val_images)
    assert_same(found, one_by_one(net, archs, images, val_images=val_images))
    assert found[1] == min(val_images, 90)


def test_unreadable_images_are_left_out_of_both(tmp_path, net):
    folder = image_folder(tmp_path / "images", NAMES)
    for name in ("val/2/0.JPEG", "train/5/1.png"):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"not an image")
    images, archs = load(folder), archs_of(SPACES["pool"], "random")[:3]
    settings = {"skip_bad_images": True, "calib_images": 100}
    found = evaluated(tmp_path / "journal", net, archs, images, **settings)
    assert_same(found, one_by_one(net, archs, images, **settings))
    assert found[1] == 20


# ---- what pieces are named by

def load(folder, size=32):
    return data.load(EvalConfig(image_dir=str(folder), image_size=size))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images") / "images", NAMES)


@pytest.mark.parametrize("change, differs", [
    ({"digest": "others"}, "weights"), ({"archs": 2}, ""), ({"size": 28}, "calibration image_size validation"),
    ({"calib_images": 27}, "calibration"), ({"calib_images": 0}, "calibration"), ({"amp": "fp16"}, "amp"),
    ({"seed": 1}, "calibration validation"), ({"val_images": 20}, "validation"),
    ({"skip_bad_images": True}, "calibration validation"), ({"space": POOL.narrowed(WIDTHS, 2)}, "space")])
def test_a_changed_input_uses_no_piece_of_another_evaluation(tmp_path, folder, net, change, differs):
    archs, images = archs_of(SPACES["pool"], "random")[:3], load(folder)
    before = opened(tmp_path, net, archs, images)
    config = EvalConfig(**{"calib_images": 28, "chunk": 32, **{name: value for name, value in change.items()
                                                               if name in EvalConfig.__dataclass_fields__}})
    changed = opened(tmp_path, supernet(change["space"]) if "space" in change else net, archs[:change.get("archs", 3)],
                     load(folder, change.get("size", 32)), change.get("digest", "weights"), config)
    assert changed.folder != before.folder
    assert " ".join(sorted(name for name, value in before.plan["inputs"].items()
                           if changed.plan["inputs"][name] != value)) == differs


@pytest.mark.parametrize("part", ["val/1/1.png", "train/1/1.png"])
@pytest.mark.parametrize("aspect", ["time", "size", "name", "content"])
def test_a_changed_image_uses_no_piece_of_another_evaluation(tmp_path, folder, net, part, aspect):
    archs, copy = archs_of(SPACES["pool"], "random")[:3], tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = EvalConfig(calib_images=1000)
    before, path = opened(tmp_path, net, archs, load(copy), config=config), copy / part
    times = path.stat()
    if aspect == "size":
        path.write_bytes(path.read_bytes() + b"\0")
    elif aspect == "content":
        shutil.copyfile(copy / part.replace("/1/", "/2/"), path)
    if aspect == "name":
        path.rename(path.with_name("1a.png"))
    elif aspect != "content":
        os.utime(path, ns=(0, times.st_mtime_ns + (aspect == "time")))
    assert opened(tmp_path, net, archs, load(copy), config=config).folder != before.folder


def test_what_the_counts_do_not_depend_on_finds_the_same_pieces(tmp_path, folder, net):
    archs = archs_of(SPACES["pool"], "random")[:3]
    before = opened(tmp_path, net, archs, load(folder))
    other = EvalConfig(calib_images=28, chunk=4, num_workers=0, cache_dir=str(tmp_path / "cache"), output="other.json",
                       batch_size=3, device="cpu")
    again = opened(tmp_path, net, archs, load(folder), config=other)
    assert (again.folder, again.plan) == (before.folder, before.plan)


def test_other_weights_give_their_own_counts_beside_those_of_the_first(tmp_path, images, net):
    archs, other = archs_of(SPACES["pool"], "random")[:4], supernet(SPACES["pool"], seed=1)
    first = evaluated(tmp_path, net, archs, images, "first")
    second = evaluated(tmp_path, other, archs, images, "second")
    assert_same(second, one_by_one(other, archs, images))
    assert not np.array_equal(first[0], second[0])
    assert_same(evaluated(tmp_path, net, archs, images, "first"), first)


# ---- what is done stays done

def pieces_of(journal):
    return [*journal.statistics_pieces(), *journal.counts_pieces()]


@pytest.fixture
def done(tmp_path, images, net, monkeypatch):
    """(archs, their counts, the journal) of an evaluation that is done, in two shards and three chunks."""
    monkeypatch.setattr(sweep, "ARCHS_PER_SHARD", 3)
    archs = archs_of(SPACES["pool"], "random")[:5]
    counts = evaluated(tmp_path, net, archs, images)
    return archs, counts, Journal.newest(str(tmp_path))


def test_running_again_computes_nothing(tmp_path, images, net, monkeypatch, done):
    archs, counts, journal = done
    before = {piece: os.stat(journal.path(piece)).st_mtime_ns for piece in pieces_of(journal)}
    assert len(before) == 2 + 2 * 3
    monkeypatch.setattr(walk, "run", None)
    assert_same(evaluated(tmp_path, net, archs, images), counts)
    assert before == {piece: os.stat(journal.path(piece)).st_mtime_ns for piece in pieces_of(journal)}


@pytest.mark.parametrize("place", range(8))
def test_a_deleted_piece_is_the_only_one_that_is_made_again(tmp_path, images, net, monkeypatch, done, place):
    archs, counts, journal = done
    piece, written = pieces_of(journal)[place], []
    content = np.array(journal.read(piece))
    os.unlink(journal.path(piece))
    write = Journal.write
    monkeypatch.setattr(Journal, "write", lambda self, name, array: (written.append(name), write(self, name, array)))
    assert_same(evaluated(tmp_path, net, archs, images), counts)
    assert written == [piece] and np.array_equal(journal.read(piece), content)


@pytest.mark.parametrize("torn, missing", [(2, None), (0, 2)], ids=["counts", "statistics"])
def test_a_torn_piece_stops_with_its_name_and_after_deleting_it_all_is_well(tmp_path, images, net, done, torn, missing):
    archs, counts, journal = done
    path = journal.path(pieces_of(journal)[torn])
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) - 1)
    if missing is not None:
        os.unlink(journal.path(pieces_of(journal)[missing]))
    with pytest.raises(UserError, match=f"^{path} is not readable .*; delete it and it is made again$"):
        evaluated(tmp_path, net, archs, images)
    os.unlink(path)
    assert_same(evaluated(tmp_path, net, archs, images), counts)


def test_fresh_makes_every_piece_again(tmp_path, images, net, done):
    archs, counts, journal = done
    piece = journal.counts_pieces()[0]
    journal.write(piece, journal.read(piece) * [1, 0, 0])
    assert evaluated(tmp_path, net, archs, images)[0].sum() < counts[0].sum()  # what is there is believed
    assert_same(evaluated(tmp_path, net, archs, images, fresh=True), counts)


def test_fresh_is_refused_to_one_of_several_processes(tmp_path, images, net, monkeypatch, done):
    monkeypatch.setattr(runtime, "ranks", lambda: 2)
    with pytest.raises(UserError, match=f"^--fresh is for one process, not for 2: delete {tmp_path} and go without"):
        evaluated(tmp_path, net, done[0], images, fresh=True)
    assert done[2].counts()[1] == 90


def test_a_result_that_others_have_deleted_is_not_taken_for_a_whole_one(tmp_path, images, net, monkeypatch, done):
    archs, counts, journal = done
    os.unlink(journal.path(journal.counts_pieces()[-1]))
    write = Journal.write

    def write_and_lose(self, piece, array):
        write(self, piece, array)
        os.unlink(self.path(self.counts_pieces()[0]))

    monkeypatch.setattr(Journal, "write", write_and_lose)
    with pytest.raises(UserError, match="^pieces in .* have been deleted meanwhile; the same command "):
        evaluated(tmp_path, net, archs, images)
    monkeypatch.undo()
    assert_same(evaluated(tmp_path, net, archs, images), counts)


def test_what_is_there_so_far_is_right_on_the_images_it_rests_on(images, net, done):
    archs, counts, journal = done
    os.unlink(journal.path(journal.counts_pieces((32, 64))[1]))
    found, total = journal.counts()
    assert total == 32 + 26
    order, _ = sweep.chosen(images, EvalConfig())
    order = np.r_[order[:32], order[64:]]
    seen = data.Split(images.val.images[order], images.val.labels[order])
    part = data.ImageSet("part", images.classes, images.train, seen, 32)
    assert np.array_equal(found, one_by_one(net, archs, part)[0])


@pytest.mark.parametrize("memory, shards", [(1, 1), (10 ** 7, 1), (10 ** 8, 3), (10 ** 12, 1)])
def test_the_chunk_fits_into_memory_and_into_the_images(monkeypatch, memory, shards):
    archs = archs_of(SPACES["pool"], "random")
    cost = walk.cost(tree.walk(archs), 32, 10)
    monkeypatch.setattr(sweep, "_memory", lambda: memory)
    chunk = sweep.choose_chunk(cost, shards, 50_000)
    assert 1 <= chunk <= 50_000 and sweep.choose_chunk(cost, shards, 45) <= 45
    assert chunk == 1 or chunk * cost.path_bytes <= memory
