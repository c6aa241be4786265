"""What a submission must be, what is refused at the door, and what `verify` finds."""

import hashlib
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from resnet48.ranking import counts_file, submission
from resnet48.space import arch_list
from resnet48.space.arch import FULL, PUBLISHED
from resnet48.system import files
from resnet48.system.errors import UserError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def codes(n, seed=0):
    """n different codes of 51 digits."""
    rng = np.random.default_rng(seed)
    found = {}
    while len(found) < n:
        found[FULL.sample(rng).code] = None
    return list(found)


CODES = codes(4)
NARROW = FULL.narrowed((4, 8, 16, 32), 1)
NET = {"kind": "supernet", "space": NARROW.to_dict(), "num_classes": 10}


def save(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def form(accuracies=(0.0, 0.0, 0.0)):
    """A list as published: 52 digits, with these accuracies."""
    return {f"arch{i}": {"acc": acc, "arch": "1" + code} for i, (acc, code) in enumerate(zip(accuracies, CODES), 1)}


class Road:
    """A list of three archs, a checkpoint, and a submission with its manifest."""

    def __init__(self, folder):
        self.folder = folder
        self.list = save(folder / "list.json", form())
        self.checkpoint = save(folder / "final.pdparams", "weights")
        self.submission = str(folder / "submission.json")
        submission.write_accuracies(self.submission, arch_list.read_list(self.list), [71.5, 70.25, 73.0])
        self.state()

    def state(self, partial=False, unfinished=None):
        submission.write_manifest(self.submission, self.list, self.checkpoint, NET, {"calib_images": 512}, archs=3,
                                  partial=partial, val_images=320, image_size=33, versions={"numpy": "1.26.4"},
                                  unfinished=unfinished)

    def edit(self, change):
        """Change the submission and write its manifest anew."""
        with open(self.submission) as file:
            content = json.load(file)
        content = change(content) or content
        save(self.folder / "submission.json", content)
        self.state()

    def findings(self, checkpoint_digest=None):
        return submission.verify(self.submission, self.list, checkpoint_digest)


@pytest.fixture
def road(tmp_path):
    return Road(tmp_path)


def refusal(function, *arguments):
    with pytest.raises(UserError) as error:
        function(*arguments)
    return str(error.value)


# Reading


def test_list_is_read_in_file_order_with_the_exact_code_strings(tmp_path):
    written = {"arch10": {"acc": 0.0, "arch": CODES[0]}, "arch2": {"arch": "1" + CODES[1], "acc": 1}}
    entries = arch_list.read_list(save(tmp_path / "list.json", written))
    assert [(key, code) for key, code, _ in entries] == [("arch10", CODES[0]), ("arch2", "1" + CODES[1])]
    assert [arch.code for _, _, arch in entries] == CODES[:2]


def test_list_is_read_in_the_space_that_is_given(tmp_path, narrow):
    path = save(tmp_path / "list.json", {"a": {"acc": 0.0, "arch": narrow.largest().code}})
    assert arch_list.read_list(path, narrow)[0].arch == narrow.largest()
    outside_pool = save(tmp_path / "wide.json", {"a": {"acc": 0.0, "arch": FULL.smallest().code}})
    assert "'a'" in refusal(arch_list.read_list, outside_pool, PUBLISHED)


def test_published_list_is_read(published):
    entries = arch_list.read_list(published)
    assert len(entries) == 45000 and entries[0].key == "arch1" and entries[-1].key == "arch45000"


GOOD = {"acc": 0.0, "arch": CODES[0]}


@pytest.mark.parametrize("entry, words", [
    (7, "a number"), ([GOOD], "an array"), (None, "null"), (CODES[0], "a string"),
    ({"acc": 0.0}, "`arch` is missing"), ({"arch": CODES[0]}, "`acc` is missing"), ({}, "missing"),
    ({**GOOD, "arch": int(CODES[0])}, "`arch` must be a string"), ({**GOOD, "arch": None}, "`arch` must be a string"),
    ({**GOOD, "acc": True}, "true or false"), ({**GOOD, "acc": "93.4"}, "a string"), ({**GOOD, "acc": None}, "null"),
    ({**GOOD, "acc": math.nan}, "nan"), ({**GOOD, "acc": -math.inf}, "-inf"), ({**GOOD, "acc": 10 ** 400}, "too large"),
    ({**GOOD, "top5": 99.0}, "unknown field 'top5'"),
    ({**GOOD, "arch": CODES[0][:-1]}, "50 digits"), ({**GOOD, "arch": "9" + CODES[0][1:]}, "position 1"),
    ({**GOOD, "arch": "2" + CODES[0]}, "image size"),
])
def test_malformed_entry_is_refused_naming_file_key_and_fault(tmp_path, entry, words):
    path = save(tmp_path / "list.json", {"fine": {"acc": 0.0, "arch": CODES[1]}, "broken": entry})
    message = refusal(arch_list.read_list, path)
    assert path in message and "'broken'" in message and words in message and "\n" not in message


@pytest.mark.parametrize("text, words", [("{}", "empty"), ("[]", "an array"), ("3", "a number"), ('"a"', "a string"),
                                         ("null", "null"), ("", "not JSON"), ('{"a": ', "not JSON")])
def test_list_that_is_no_object_or_empty_is_refused_naming_the_file(tmp_path, text, words):
    path = save(tmp_path / "list.json", text)
    message = refusal(arch_list.read_list, path)
    assert path in message and words in message


def test_missing_list_is_refused_naming_the_file(tmp_path):
    assert "nowhere.json" in refusal(arch_list.read_list, str(tmp_path / "nowhere.json"))


def test_duplicate_key_is_refused_by_name(tmp_path):
    entries = [f'"arch7": {{"acc": 0.0, "arch": "{code}"}}' for code in CODES[:2]]
    assert "'arch7'" in refusal(arch_list.read_list, save(tmp_path / "list.json", "{" + ", ".join(entries) + "}"))


@pytest.mark.parametrize("before, again", [("", ""), ("", "1"), ("1", ""), ("1", "1")])
def test_same_arch_under_two_keys_is_refused_naming_both(tmp_path, before, again):
    path = save(tmp_path / "list.json", {"first": {"acc": 0.0, "arch": before + CODES[0]},
                                         "other": {"acc": 0.0, "arch": CODES[1]},
                                         "second": {"acc": 0.0, "arch": again + CODES[0]}})
    message = refusal(arch_list.read_list, path)
    assert path in message and "'first'" in message and "'second'" in message and "'other'" not in message


# Writing


def test_submission_has_keys_order_and_code_strings_of_the_list_and_accuracies_in_percent(tmp_path):
    listed = {"z": {"acc": 0.0, "arch": "1" + CODES[0]}, "a": {"acc": 0.0, "arch": CODES[1]}}
    entries = arch_list.read_list(save(tmp_path / "list.json", listed))
    path = tmp_path / "new" / "submission.json"
    submission.write_accuracies(str(path), entries, np.array([93.4, 7]))
    text = path.read_text()
    assert text == f'{{"z": {{"acc": 93.4, "arch": "1{CODES[0]}"}}, "a": {{"acc": 7.0, "arch": "{CODES[1]}"}}}}'


def test_accuracies_survive_writing_and_reading_to_the_last_digit(tmp_path):
    entries = arch_list.read_list(save(tmp_path / "list.json", form()))
    accuracies = [100 * count / 320 for count in (1, 213, 319)]
    submission.write_accuracies(str(tmp_path / "s.json"), entries, accuracies)
    assert arch_list.read_accuracies(str(tmp_path / "s.json"), "submission") == (entries, accuracies)


@pytest.mark.parametrize("accuracies", [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0], [], [1.0, 2.0, math.nan],
                                        [1.0, math.inf, 3.0], [-0.1, 2.0, 3.0], [1.0, 2.0, 100.1]])
def test_wrong_accuracies_are_refused_and_an_older_submission_stays(tmp_path, accuracies):
    entries = arch_list.read_list(save(tmp_path / "list.json", form()))
    path = save(tmp_path / "s.json", "older")
    with pytest.raises(ValueError):
        submission.write_accuracies(path, entries, accuracies)
    assert open(path).read() == "older" and sorted(os.listdir(tmp_path)) == ["list.json", "s.json"]


def test_submission_that_cannot_be_written_is_a_clear_error_and_leaves_nothing(tmp_path):
    entries = arch_list.read_list(save(tmp_path / "list.json", form()))
    (tmp_path / "s.json").mkdir()
    assert "s.json" in refusal(submission.write_accuracies, str(tmp_path / "s.json"), entries, [1.0, 2.0, 3.0])
    assert sorted(os.listdir(tmp_path)) == ["list.json", "s.json"]


# Manifest


def test_manifest_lies_beside_the_submission_under_its_stem():
    assert submission.manifest_path("out/best.json") == "out/best.manifest.json"
    assert submission.manifest_path("out.d/best") == "out.d/best.manifest.json"


def test_manifest_says_what_the_submission_was_made_of(road):
    with open(submission.manifest_path(road.submission)) as file:
        manifest = json.load(file)

    def digest(path):
        with open(path, "rb") as content:
            return hashlib.sha256(content.read()).hexdigest()

    assert manifest == {"submission_sha256": digest(road.submission), "arch_list_sha256": digest(road.list),
                        "checkpoint_sha256": digest(road.checkpoint), "archs": 3, "partial": False,
                        "unfinished_training": None, "val_images": 320, "image_size": 33,
                        "net": json.loads(json.dumps(NET)), "settings": {"calib_images": 512},
                        "versions": {"numpy": "1.26.4"}}


def test_manifest_takes_digests_that_were_computed_before(road):
    digests = files.sha256_of(road.list), files.sha256_of(road.checkpoint)
    os.unlink(road.checkpoint)
    submission.write_manifest(road.submission, *digests, {}, {}, 3, False, 320, 224, {})
    assert road.findings(digests[1]) == []


def test_space_image_size_and_classes_of_a_submission_come_from_its_manifest(road):
    assert submission.read_manifest_net(road.submission) == (NARROW, 33, 10)


def test_submission_without_manifest_counts_as_from_the_official_net():
    assert submission.read_manifest_net("nowhere.json") == (FULL, 224, 1000)


@pytest.mark.parametrize("text", ["[]", "{}", '{"net": 3}', '{"net": {"space": "full"}}', "corrupt"])
def test_manifest_that_names_no_net_is_a_clear_error(road, text):
    path = save(road.folder / "submission.manifest.json", text)
    assert path in refusal(submission.read_manifest_net, road.submission)


def counts_of(*top1_and_top5):
    """Counts with cross-entropies and a first half of four images, in which no image is right."""
    return np.array([[*each, 2.5, 4, 0, 1.25] for each in top1_and_top5])


def test_counts_behind_the_accuracies_are_kept_beside_the_submission(road):
    entries = arch_list.read_list(road.list)
    counts_file.write(road.submission, entries, counts_of([7, 9], [0, 5], [10, 10]), 10)
    with open(road.folder / "submission.counts.json") as file:
        kept = json.load(file)
    assert kept["images"] == 10 and kept["first_images"] == 4 and list(kept["counts"]) == ["arch1", "arch2", "arch3"]
    assert kept["counts"]["arch1"] == {"arch": "1" + CODES[0], "top1": 7, "top5": 9, "cross_entropy": 2.5,
                                       "first_top1": 0, "first_cross_entropy": 1.25}


def test_digest_of_a_missing_file_is_a_clear_error(tmp_path):
    assert "final.pdparams" in refusal(files.sha256_of, str(tmp_path / "final.pdparams"))


def test_digest_covers_the_whole_of_a_large_file(tmp_path):
    content = bytes(range(256)) * 10_000
    (tmp_path / "large").write_bytes(content)
    assert files.sha256_of(str(tmp_path / "large")) == hashlib.sha256(content).hexdigest()


# Verifying


def test_complete_submission_from_the_named_checkpoint_has_no_findings(road):
    assert road.findings() == []
    assert road.findings(files.sha256_of(road.checkpoint)) == []


def reordered(content):
    return dict(reversed(content.items()))


def without_first(content):
    del content["arch1"]


def without_last(content):
    del content["arch3"]


def with_extra(content):
    content["arch4"] = {"acc": 5.0, "arch": CODES[3]}


def with_51_digits(content):
    content["arch2"]["arch"] = CODES[1]


def with_swapped_codes(content):
    content["arch1"]["arch"], content["arch2"]["arch"] = content["arch2"]["arch"], content["arch1"]["arch"]


def with_nan(content):
    content["arch2"]["acc"] = math.nan


def with_too_much(content):
    content["arch2"]["acc"] = 100.5


def with_negative(content):
    content["arch2"]["acc"] = -1


def with_equal_accuracies(content):
    for value in content.values():
        value["acc"] = 12.5


def with_unknown_field(content):
    content["arch2"]["top5"] = 99.0


@pytest.mark.parametrize("change, words", [
    (reordered, ["order", "'arch3'", "'arch1'"]), (without_first, ["partial", "1 of the list's 3", "'arch1'"]),
    (without_last, ["partial", "'arch3'"]), (with_extra, ["not in the list", "'arch4'"]),
    (with_51_digits, ["codes are not the list's", "'arch2'"]), (with_swapped_codes, ["2 codes", "'arch1'"]),
    (with_nan, ["'arch2'", "nan"]), (with_too_much, ["'arch2'", "100.5"]), (with_negative, ["'arch2'", "-1"]),
    (with_equal_accuracies, ["all 3", "equal", "12.5"]), (with_unknown_field, ["'arch2'", "'top5'"]),
])
def test_verify_finds_each_fault_of_a_submission(road, change, words):
    road.edit(change)
    finding, = road.findings()
    assert all(word in finding for word in words), finding


def test_verify_finds_several_faults_at_once(road):
    def change(content):
        with_nan(content)
        with_extra(content)
        with_swapped_codes(content)
    road.edit(change)
    assert len(road.findings()) == 3


def test_verify_finds_the_unfilled_list(road):
    road.edit(lambda content: form())
    assert any("equal" in finding for finding in road.findings())


def test_verify_finds_a_missing_manifest(road):
    os.unlink(submission.manifest_path(road.submission))
    finding, = road.findings()
    assert "no manifest" in finding and submission.manifest_path(road.submission) in finding


def test_verify_finds_a_submission_changed_after_its_evaluation(road):
    content = form([71.5, 70.25, 99.0])
    save(road.folder / "submission.json", content)
    finding, = road.findings()
    assert "submission_sha256" in finding


def test_verify_finds_that_the_list_is_another_one(road):
    save(road.folder / "list.json", json.dumps(form(), indent=1))
    finding, = road.findings()
    assert "arch_list_sha256" in finding


def test_verify_finds_that_the_checkpoint_is_another_one(road):
    finding, = road.findings(hashlib.sha256(b"other weights").hexdigest())
    assert "checkpoint_sha256" in finding


def test_verify_refuses_a_supernet_whose_training_was_not_finished_unless_that_is_allowed(road):
    road.state(unfinished="step 12 of 12000")
    (finding,) = road.findings()
    assert "not finished (step 12 of 12000)" in finding and "--allow_unfinished" in finding
    assert submission.verify(road.submission, road.list, allow_unfinished=True) == []


@pytest.mark.parametrize("partial", [True, None, "no"])
def test_verify_finds_a_run_not_known_to_be_complete(road, partial):
    road.state(partial=partial)
    finding, = road.findings()
    assert "complete" in finding


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_verify_finds_a_manifest_that_proves_nothing(road, text):
    save(road.folder / "submission.manifest.json", text)
    findings = road.findings()
    assert findings and all("submission.manifest.json" in finding for finding in findings)


def test_verify_refuses_files_that_cannot_be_read(road):
    assert "gone.json" in refusal(submission.verify, str(road.folder / "gone.json"), road.list)
    assert "gone.json" in refusal(submission.verify, road.submission, str(road.folder / "gone.json"))


def test_reading_and_scoring_import_neither_paddle_nor_pyplot():
    code = "import sys, resnet48.ranking.submission, resnet48.ranking.score\n" \
           "assert not {'paddle', 'matplotlib.pyplot'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# What may be replaced


def reason(road, *, kept=3, **options):
    return submission.reason_to_keep(road.submission, [entry.arch for entry in
                                                       arch_list.read_list(road.list)[:kept]], **options)


def test_a_list_without_accuracies_is_filled_in_place_as_a_whole_or_not_at_all(tmp_path):
    path = save(tmp_path / "list.json", form())
    archs = [entry.arch for entry in arch_list.read_list(path)]
    assert submission.reason_to_keep(path, archs) is None
    assert "holds 1 archs (of 3) that would not be in the new file" in submission.reason_to_keep(path, archs[:2])


def test_a_complete_submission_is_replaced_by_one_of_all_its_archs_only(road):
    assert reason(road) is None
    assert "holds 2 archs (of 3)" in reason(road, kept=1)
    assert reason(road, finished_too=True) == "is a submission that is finished"


def test_a_partial_submission_is_replaced_by_any_other(road):
    road.state(partial=True)
    assert reason(road, kept=1) is None


def test_accuracies_from_elsewhere_are_not_replaced(road):
    os.unlink(submission.manifest_path(road.submission))
    assert "accuracies from elsewhere" in reason(road)
    counts_file.write(road.submission, arch_list.read_list(road.list), counts_of((1, 1), (2, 2), (3, 3)), 10)
    assert "accuracies from elsewhere" in reason(road)  # counts of another submission
    for made_here, expected in ((True, None), (False, "is there already and holds accuracies from elsewhere, such as "
                                                      "a truth")):
        assert reason(road, made_by=lambda arch: made_here) == expected


def test_what_counts_beside_it_belong_to_was_written_by_an_evaluation(tmp_path):
    entries = arch_list.read_list(save(tmp_path / "list.json", form()))
    path, codes = str(tmp_path / "so_far.json"), [[entry.key, entry.code] for entry in entries]
    submission.write_partial(path, codes, counts_of((1, 2), (3, 3), (0, 9)), 32, 60)
    assert submission.reason_to_keep(path, [entry.arch for entry in entries], finished_too=True) is None
    save(tmp_path / "so_far.json", form((50.0, 60.0, 70.0)))
    assert "accuracies from elsewhere" in submission.reason_to_keep(path, [entry.arch for entry in entries])


def test_counts_of_an_earlier_version_show_what_they_belong_to_as_well(tmp_path):
    entries = arch_list.read_list(save(tmp_path / "list.json", form()))
    path = save(tmp_path / "old.json", form((10.0, 30.0, 0.0)))
    save(tmp_path / "old.counts.json", {"images": 10, "counts": {
        entry.key: {"arch": entry.code, "top1": top1, "top5": 10} for entry, top1 in zip(entries, (1, 3, 0))}})
    assert submission.reason_to_keep(path, [entry.arch for entry in entries], finished_too=True) is None


@pytest.mark.parametrize("content", ["", "{}", "[1]", "text", "\x00", {"arch1": {"acc": 1.0, "arch": "12"}}])
def test_what_is_no_list_is_not_replaced(tmp_path, content):
    path = save(tmp_path / "file", content)
    assert submission.reason_to_keep(path, []) == "is there already and is neither an arch list nor a submission"


# Dotted names


def test_submissions_with_dotted_names_have_manifests_and_counts_of_their_own(tmp_path):
    names = [str(tmp_path / name) for name in ("sub", "sub.v1.0", "sub.v1.1", "sub.v1.1.json.part")]
    assert len({beside for name in names for beside in submission.side_files(name)}) == 8


def test_a_manifest_that_an_earlier_version_wrote_under_a_shorter_name_is_found_by_its_own_submission(road):
    first, second = (str(road.folder / name) for name in ("sub.v1.0", "sub.v1.1"))
    for path in (first, second):
        with open(road.submission, "rb") as old, open(path, "wb") as new:
            new.write(old.read() + b" " * (path == second))
    os.rename(submission.manifest_path(road.submission), road.folder / "sub.v1.manifest.json")
    assert submission.manifest_path(first) == str(road.folder / "sub.v1.manifest.json")
    assert submission.verify(first, road.list) == []
    assert submission.manifest_path(second) == str(road.folder / "sub.v1.1.manifest.json")
    assert "there is no manifest" in submission.verify(second, road.list)[0]
