"""The evaluator against the reference that runs each arch on its own, and what the names of its tasks depend on."""

import os
import pathlib
import shutil
from dataclasses import replace

import numpy as np
import paddle
import pytest
from commands import image_folder

from resnet48.evaluation import accuracy, counts, evaluator, prefix_tree, tree_forward
from resnet48.evaluation.journal import Journal
from resnet48.images import datasets
from resnet48.nets import norm_statistics
from resnet48.nets.supernet import Supernet
from resnet48.space.arch import FULL, PUBLISHED, ArchConfig
from resnet48.space.arch_list import Entry
from resnet48.system import runtime
from resnet48.system.errors import UserError

WIDTHS = (4, 8, 16, 32)
SPACES = {"pool": PUBLISHED.narrowed(WIDTHS, 1), "full": FULL.narrowed(WIDTHS, 1),
          "two channels": FULL.narrowed((2, 2, 4, 4), 1)}
LISTS = ["random", "one", "same beginnings", "within one another", "same widths"]
CLASSES = 7
NAMES = tuple(map(str, range(CLASSES)))
CROSS_ENTROPY = counts.COLUMNS.index("cross_entropy")
WHOLE = [place for place, name in enumerate(counts.COLUMNS) if "cross_entropy" not in name]  # numbers
ROUNDING = 1e-5  # nats per image; up to 2.3e-6 at 10 nats per image were seen


@pytest.fixture(scope="module")
def images():
    """90 validation and 70 training images, 32 pixels, in seven classes: noise around many different levels."""
    rng = np.random.default_rng(1)

    def split(count):
        levels = rng.uniform(0, 200, (count, 4, 4, 3)).repeat(10, axis=1).repeat(10, axis=2)[:, :37, :37]
        return datasets.Split((levels + rng.uniform(0, 55, levels.shape)).astype("uint8"),
                              rng.integers(0, CLASSES, count))

    return datasets.ImageSet("noise", NAMES, split(70), split(90), 32)


def supernet(space, seed=0):
    """A net that has learnt nothing, with running statistics that fit its largest arch."""
    paddle.seed(seed)
    rng, net = np.random.default_rng(seed), Supernet(space, CLASSES)
    for name, value in net.state_dict().items():
        if "bn" in name and name.endswith(("weight", "bias")):
            value.set_value(rng.uniform(0.5, 1.5, value.shape).astype("float32"))
    net.eval()
    accuracy.calibrate(net, space.largest(), rng.integers(0, 256, (50, 3, 32, 32), "uint8")).store()
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


def sample(images, val_images=None, calib_images=28, seed=0):
    return accuracy.Sample.of(images, val_images, calib_images, seed)


def evaluated(root, net, archs, images, digest="weights", chunk=32, fresh=False, **which):
    """Counts and number of images of an evaluation over the tree, below `root`. which: images, see `sample`."""
    chosen = sample(images, **which)
    return evaluator.evaluate_list(net, opened(root, net, archs, chosen, digest, chunk, fresh),
                                   prefix_tree.traversal(archs), chosen)


def opened(root, net, archs, chosen, digest="weights", chunk=32, fresh=False, precision="fp32"):
    entries = [Entry(f"arch{place}", arch.code, arch) for place, arch in enumerate(archs)]
    return evaluator.open_journal(str(root), digest, entries, prefix_tree.traversal(archs), net, chosen, precision,
                                  chunk, fresh)


def one_by_one(net, archs, images, **which):
    return evaluator.counts_one_by_one(net, archs, sample(images, **which), batch_size=256)


def assert_same(found, expected):
    """The same to the last bit: nothing that was computed was computed in another way."""
    assert found[1] == expected[1]
    assert np.array_equal(found[0], expected[0])


def assert_agree(found, expected):
    """The same counts, and cross-entropies that differ by rounding: in other batches logits have other last digits."""
    assert found[1] == expected[1]
    assert np.array_equal(found[0][:, WHOLE], expected[0][:, WHOLE])
    assert np.abs(found[0] - expected[0]).max() <= ROUNDING * found[1]
    assert found[0][:, CROSS_ENTROPY].min() > 1000 * ROUNDING * found[1]


# ---- the same counts as each arch on its own

@pytest.mark.parametrize("calib_images", [28, 0])
@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("space", SPACES)
def test_the_counts_are_those_of_each_arch_on_its_own(tmp_path, images, monkeypatch, space, kind, calib_images):
    monkeypatch.setattr(evaluator, "ARCHS_PER_SHARD", 5)
    net, archs = supernet(SPACES[space]), archs_of(SPACES[space], kind)
    found = evaluated(tmp_path, net, archs, images, calib_images=calib_images)
    assert_agree(found, one_by_one(net, archs, images, calib_images=calib_images))
    assert found[0].shape == (len(archs), len(counts.COLUMNS)) and found[1] == 90
    if calib_images and kind not in ("one", "same widths"):
        assert len(set(map(tuple, found[0][:, :2]))) > 1  # the images do tell the archs apart


@pytest.mark.parametrize("chunk", [2, 89, 90, 1000, None])
@pytest.mark.parametrize("archs_per_shard", [1, 5, 500])
def test_chunks_and_shards_of_any_size_give_the_same_counts(tmp_path, images, net, monkeypatch, chunk, archs_per_shard):
    monkeypatch.setattr(evaluator, "ARCHS_PER_SHARD", archs_per_shard)
    archs = archs_of(SPACES["pool"], "random")[:6]
    assert_agree(evaluated(tmp_path, net, archs, images, chunk=chunk), one_by_one(net, archs, images))


@pytest.mark.parametrize("val_images", [1, 20, 1000])
def test_so_many_validation_images_are_counted(tmp_path, images, net, val_images):
    archs = archs_of(SPACES["pool"], "random")[:3]
    found = evaluated(tmp_path, net, archs, images, val_images=val_images)
    assert_agree(found, one_by_one(net, archs, images, val_images=val_images))
    assert found[1] == min(val_images, 90)


def test_unreadable_images_are_left_out_of_both(tmp_path, net):
    folder = image_folder(tmp_path / "images", NAMES)
    for name in ("val/2/0.JPEG", "train/5/1.png"):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"not an image")
    images, archs = load(folder, skip_bad=True), archs_of(SPACES["pool"], "random")[:3]
    found = evaluated(tmp_path / "journal", net, archs, images, calib_images=100)
    assert_agree(found, one_by_one(net, archs, images, calib_images=100))
    assert found[1] == 20


def test_calibration_in_parts_gives_the_same_counts_whatever_the_chunk_and_is_told_from_that_in_one_part(
        tmp_path, images, net, monkeypatch):
    archs = archs_of(SPACES["pool"], "random")[:4]
    whole = opened(tmp_path / "32", net, archs, sample(images))
    assert "calibration_part" not in whole.plan["inputs"]
    monkeypatch.setattr(norm_statistics, "PART_PIXELS", 12 * 32 ** 2)
    assert opened(tmp_path / "32", net, archs, sample(images)).unlike == (
        f"the evaluation in {whole.folder} does not count for this one: other parts of calibration images")
    found = {chunk: evaluated(tmp_path / str(chunk), net, archs, images, chunk=chunk) for chunk in (32, 90)}
    for counts in found.values():
        assert_agree(counts, one_by_one(net, archs, images))
    cut, other = (Journal.newest(str(tmp_path / str(chunk))) for chunk in found)
    assert cut.folder != whole.folder and cut.plan["inputs"]["calibration_part"] == 12
    assert cut.unlike is None and os.path.basename(cut.folder) == os.path.basename(other.folder)
    for task in cut.statistics_tasks():
        assert np.array_equal(cut.read(task), other.read(task))
    again = opened(tmp_path / "32", net, archs, sample(images, calib_images=27))
    assert again.unlike.endswith(": other calibration images")
    assert "calibration_part" not in opened(tmp_path, net, archs, sample(images, calib_images=12)).plan["inputs"]


# ---- what names of tasks depend on

def load(folder, size=32, skip_bad=False):
    return datasets.load(str(folder), size, skip_bad=skip_bad)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images") / "images", NAMES)


@pytest.mark.parametrize("change, differs", [
    ({"digest": "others"}, "weights"), ({"archs": 2}, ""), ({"size": 28}, "calibration image_size validation"),
    ({"calib_images": 27}, "calibration"), ({"calib_images": 0}, "calibration"), ({"precision": "fp16"}, "amp"),
    ({"seed": 1}, "calibration validation"), ({"val_images": 20}, "validation"),
    ({"skip_bad": True}, "calibration validation"), ({"space": PUBLISHED.narrowed(WIDTHS, 2)}, "space")])
def test_a_changed_input_uses_no_task_of_another_evaluation(tmp_path, folder, net, change, differs):
    def only(*names):
        return {name: value for name, value in change.items() if name in names}

    archs = archs_of(SPACES["pool"], "random")[:3]
    before = opened(tmp_path, net, archs, sample(load(folder)))
    changed = opened(tmp_path, supernet(change["space"]) if "space" in change else net, archs[:change.get("archs", 3)],
                     sample(load(folder, **only("size", "skip_bad")), **only("calib_images", "val_images", "seed")),
                     **only("digest", "precision"))
    assert changed.folder != before.folder
    assert " ".join(sorted(name for name, value in before.plan["inputs"].items()
                           if changed.plan["inputs"][name] != value)) == differs


@pytest.mark.parametrize("part", ["val/1/1.png", "train/1/1.png"])
@pytest.mark.parametrize("aspect", ["size", "name", "content"])
def test_a_changed_image_uses_no_task_of_another_evaluation(tmp_path, folder, net, part, aspect):
    archs, copy = archs_of(SPACES["pool"], "random")[:3], tmp_path / "copy"
    shutil.copytree(folder, copy)
    before, path = opened(tmp_path, net, archs, sample(load(copy), calib_images=1000)), copy / part
    if aspect == "size":
        path.write_bytes(path.read_bytes() + b"\0")
    elif aspect == "content":
        shutil.copyfile(copy / part.replace("/1/", "/2/"), path)
    else:
        path.rename(path.with_name("1a.png"))
    changed = opened(tmp_path, net, archs, sample(load(copy), calib_images=1000))
    assert changed.folder != before.folder
    what = "validation" if part.startswith("val") else "calibration"
    assert changed.unlike == f"the evaluation in {before.folder} does not count for this one: other {what} images"


def test_the_same_images_copied_again_find_the_same_tasks(tmp_path, folder, net):
    archs = archs_of(SPACES["pool"], "random")[:3]
    before = opened(tmp_path, net, archs, sample(load(folder)))
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert opened(tmp_path, net, archs, sample(load(tmp_path / "copy"))).folder == before.folder


def test_what_the_counts_do_not_depend_on_finds_the_same_tasks(tmp_path, folder, net):
    archs = archs_of(SPACES["pool"], "random")[:3]
    before = opened(tmp_path, net, archs, sample(load(folder)))
    other = replace(load(folder), workers=0, cache_dir=str(tmp_path / "cache"))
    again = opened(tmp_path, net, archs, sample(other), chunk=4)
    assert (again.folder, again.plan) == (before.folder, before.plan)


def test_other_weights_give_their_own_counts_beside_those_of_the_first(tmp_path, images, net):
    archs, other = archs_of(SPACES["pool"], "random")[:4], supernet(SPACES["pool"], seed=1)
    first = evaluated(tmp_path, net, archs, images, "first")
    second = evaluated(tmp_path, other, archs, images, "second")
    assert_agree(second, one_by_one(other, archs, images))
    assert not np.array_equal(first[0], second[0])
    assert_same(evaluated(tmp_path, net, archs, images, "first"), first)


def test_results_of_an_earlier_version_which_have_no_checksum_are_computed_again(tmp_path, images, net, capsys, done):
    archs, counts, journal = done
    for task in tasks_of(journal):
        np.save(journal.path(task), np.load(journal.path(task)))
    assert_same(evaluated(tmp_path, net, archs, images), counts)
    said = capsys.readouterr().out
    assert said.count("it has no checksum, an earlier version wrote it") == 2  # once for statistics, once for counts


# ---- what is done stays done

def tasks_of(journal):
    return [*journal.statistics_tasks(), *journal.counts_tasks()]


@pytest.fixture
def done(tmp_path, images, net, monkeypatch):
    """(archs, their counts, the journal) of an evaluation that is done, in two shards and three chunks."""
    monkeypatch.setattr(evaluator, "ARCHS_PER_SHARD", 3)
    archs = archs_of(SPACES["pool"], "random")[:5]
    counts = evaluated(tmp_path, net, archs, images)
    return archs, counts, Journal.newest(str(tmp_path))


def test_running_again_computes_nothing(tmp_path, images, net, monkeypatch, done):
    archs, counts, journal = done
    before = {task: os.stat(journal.path(task)).st_mtime_ns for task in tasks_of(journal)}
    assert len(before) == 2 + 2 * 3
    monkeypatch.setattr(tree_forward, "forward_tree", None)
    monkeypatch.setattr(tree_forward, "measure_tree", None)
    assert_same(evaluated(tmp_path, net, archs, images), counts)
    assert before == {task: os.stat(journal.path(task)).st_mtime_ns for task in tasks_of(journal)}


def test_of_a_piece_of_several_chunks_an_interruption_loses_the_chunk_that_is_at_work(
        tmp_path, images, net, monkeypatch):
    monkeypatch.setattr(evaluator, "ARCHS_PER_SHARD", 3)
    archs, walks, stop_at = archs_of(SPACES["pool"], "random")[:5], [], 2 + 4

    def walked(weights, *arguments, original=tree_forward.forward_tree):
        if len(walks) == stop_at:
            raise KeyboardInterrupt
        walks.append(arguments[1].shape[0])
        return original(weights, *arguments)

    expected = evaluated(tmp_path / "expected", net, archs, images, chunk=20)
    monkeypatch.setattr(evaluator, "MOST_TASKS", 4)  # two shards, and five chunks of up to 20 images, three in a piece
    monkeypatch.setattr(tree_forward, "forward_tree", walked)
    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path, net, archs, images, chunk=20)
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "expected"]
    assert sorted(path.name for path in folder.glob("counts-*")) == [
        "counts-0000000-0000060-0000.npy", "counts-0000000-0000060-0001.npy"]
    stop_at = 7
    with pytest.raises(KeyboardInterrupt):
        evaluated(tmp_path, net, archs, images, chunk=20)
    assert sorted(path.name for path in folder.glob("counts-*"))[2:] == ["counts-0000060-0000080-0000.npy"]
    stop_at = None
    assert_same(evaluated(tmp_path, net, archs, images, chunk=20), expected)
    assert walks == 3 * [20] + 3 * [20] + [20] + [10, 20, 10]
    assert len(list(folder.glob("counts-*"))) == 4


@pytest.mark.parametrize("place", range(8))
def test_a_deleted_task_is_the_only_one_that_is_made_again(tmp_path, images, net, monkeypatch, done, place):
    archs, counts, journal = done
    task, written = tasks_of(journal)[place], []
    content = np.array(journal.read(task))
    os.unlink(journal.path(task))
    write = Journal.write
    monkeypatch.setattr(Journal, "write", lambda self, name, array: (written.append(name), write(self, name, array)))
    assert_same(evaluated(tmp_path, net, archs, images), counts)
    assert written == [task] and np.array_equal(journal.read(task), content)


def zeroed(path):
    array = np.load(path)
    np.save(path, np.zeros_like(array))


def bit_flipped(path):
    with open(path, "r+b") as file:
        file.seek(140)
        byte = file.read(1)[0]
        file.seek(140)
        file.write(bytes([byte ^ 1]))


SPOILT = {"zeroed": zeroed, "zeros": lambda path: pathlib.Path(path).write_bytes(bytes(os.path.getsize(path))),
          "one row less": lambda path: np.save(path, np.load(path)[1:]), "one bit": bit_flipped,
          "cut off": lambda path: os.truncate(path, os.path.getsize(path) - 1),
          "another dtype": lambda path: np.save(path, np.load(path).astype("float64")),
          "objects": lambda path: np.save(path, np.array([{}, None]))}


@pytest.mark.parametrize("place", [0, 2, 7])
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_result_that_is_not_what_was_written_is_made_again(tmp_path, images, net, capsys, done, spoil, place):
    archs, counts, journal = done
    task = tasks_of(journal)[place]
    content = pathlib.Path(journal.path(task)).read_bytes()
    spoil(journal.path(task))
    assert_same(evaluated(tmp_path, net, archs, images), counts)
    assert f"1 results in {journal.folder} are not to be believed and are computed again, the first is {task.name}" \
        in capsys.readouterr().out
    assert pathlib.Path(journal.path(task)).read_bytes() == content


def test_statistics_that_are_damaged_while_it_runs_are_measured_again(tmp_path, images, net, monkeypatch, done):
    archs, counts, journal = done
    for task in journal.counts_tasks():
        os.unlink(journal.path(task))
    write, spoilt = Journal.write, []

    def write_and_spoil(self, task, array):
        write(self, task, array)
        if task.kind == "counts" and not spoilt:
            spoilt.extend(self.statistics_tasks())
            for each in spoilt:
                zeroed(self.path(each))

    monkeypatch.setattr(Journal, "write", write_and_spoil)
    assert_same(evaluated(tmp_path, net, archs, images), counts)
    assert len(spoilt) == 2


@pytest.mark.parametrize("one, other", [(0, 1), (2, 3), (2, 4), (0, 2)])
def test_results_that_were_swapped_are_made_again(tmp_path, images, net, done, one, other):
    archs, counts, journal = done
    paths = [journal.path(tasks_of(journal)[place]) for place in (one, other)]
    os.rename(paths[0], tmp_path / "x")
    os.rename(paths[1], paths[0])
    os.rename(tmp_path / "x", paths[1])
    assert_same(evaluated(tmp_path, net, archs, images), counts)


def test_fresh_makes_every_task_again(tmp_path, images, net, done):
    archs, counts, journal = done
    task = journal.counts_tasks()[0]
    journal.write(task, journal.read(task) * [1, 0, 0, 0, 1, 0, 0])
    assert evaluated(tmp_path, net, archs, images)[0].sum() < counts[0].sum()  # what a process has written is believed
    assert_same(evaluated(tmp_path, net, archs, images, fresh=True), counts)


def test_fresh_is_refused_to_one_of_several_processes(tmp_path, images, net, monkeypatch, done):
    monkeypatch.setattr(runtime, "world_size", lambda: 2)
    with pytest.raises(UserError, match=f"^--fresh is for one process, not for 2: delete {tmp_path} and run without"):
        evaluated(tmp_path, net, done[0], images, fresh=True)
    assert done[2].counts()[1] == 90


def test_a_result_that_others_have_deleted_is_not_taken_for_a_whole_one(tmp_path, images, net, monkeypatch, done):
    archs, counts, journal = done
    os.unlink(journal.path(journal.counts_tasks()[-1]))
    write = Journal.write

    def write_and_lose(self, task, array):
        write(self, task, array)
        os.unlink(self.path(self.counts_tasks()[0]))

    monkeypatch.setattr(Journal, "write", write_and_lose)
    with pytest.raises(UserError, match="^results in .* have been deleted or damaged meanwhile; the same command "):
        evaluated(tmp_path, net, archs, images)
    monkeypatch.undo()
    assert_same(evaluated(tmp_path, net, archs, images), counts)


def test_what_is_there_so_far_is_right_on_the_images_it_rests_on(images, net, done):
    archs, counts, journal = done
    os.unlink(journal.path(journal.counts_tasks((32, 64))[1]))
    found, total = journal.counts()
    assert total == 32 + 26
    order = sample(images).validation
    order = np.r_[order[:32], order[64:]]
    seen = datasets.Split(images.val.images[order], images.val.labels[order])
    part = datasets.ImageSet("part", images.classes, images.train, seen, 32)
    expected = one_by_one(net, archs, part)[0]
    assert np.array_equal(found[:, :2], expected[:, :2])
    assert np.abs(found[:, CROSS_ENTROPY] - expected[:, CROSS_ENTROPY]).max() <= ROUNDING * total


@pytest.mark.parametrize("memory, shards", [(1, 1), (10 ** 7, 1), (10 ** 8, 3), (10 ** 12, 1)])
def test_the_chunk_fits_into_memory_and_into_the_images(monkeypatch, memory, shards):
    archs = archs_of(SPACES["pool"], "random")
    cost = tree_forward.cost_of_shards(prefix_tree.shards(prefix_tree.traversal(archs), shards), 32, 10)
    for device in (evaluator.Device.of("cpu", memory), evaluator.Device.of("gpu", memory)):
        chunk = evaluator.choose_chunk(cost, shards, 50_000, device)
        assert 1 <= chunk <= 50_000 and evaluator.choose_chunk(cost, shards, 45, device) <= 45
        assert chunk == 1 or chunk * cost.path_bytes <= memory
    monkeypatch.setattr(evaluator, "_memory", lambda kind: memory)
    assert evaluator.choose_chunk(cost, shards, 50_000) in [
        evaluator.choose_chunk(cost, shards, 50_000, evaluator.Device.of(kind, memory)) for kind in ("cpu", "gpu")]


@pytest.mark.parametrize("chunk, shards, images", [(16, 90, 50_000), (380, 90, 50_000), (1, 90, 50_000), (7, 1, 30),
                                                   (1, 20_000, 3), (128, 90, 14_000)])
def test_pieces_keep_the_tasks_under_ten_thousand_and_about_half_of_that_at_least(chunk, shards, images):
    piece = evaluator.choose_piece(chunk, shards, images)
    tasks, in_chunks = shards * -(-images // piece), shards * -(-images // chunk)
    assert piece % chunk == 0
    assert tasks <= 10_000 or piece >= images
    assert tasks == in_chunks or tasks > 4_900
