import pytest

from resnet48.evaluation import prefix_tree, tree_forward
from resnet48.space import arch_list
from resnet48.space.arch import FULL, PUBLISHED, ArchConfig


def replayed(steps):
    """What a traversal computes: [(leaf, its path)], each path made of what was kept and what was added."""
    path, found = (), []
    for step in steps:
        assert step.kept <= len(path)
        path = path[:step.kept] + step.added
        found.append((step.leaf, path))
    return found


def prefixes(archs):
    """Every different beginning of the archs' paths, each of which one node computes."""
    return {arch.nodes()[:length] for arch in archs for length in range(1, len(arch.nodes()) + 1)}


def some_archs(space, rng, count=60):
    """Random archs, and others that share much with them: shallower ones, and ones with another last stage."""
    archs = [space.sample(rng) for _ in range(count)]
    for arch in list(archs):
        shallow, fewest = arch.code, space.depths[3][0]
        if arch.depths[3] > fewest:
            depth = arch.depths[3] - 1
            shallow = arch.code[:3] + str(depth) + arch.code[4:41] + arch.code[41:41 + 2 * depth].ljust(10, "0")
            archs.append(ArchConfig.parse(shallow, space))
    return archs


def of_depths(*depths, space=FULL, digit="1"):
    """Archs of the same widths that differ in the depth of the last stage."""
    return [ArchConfig.parse(f"222{depth}" + digit + (digit * 4).ljust(10, "0") + (digit * 4).ljust(10, "0")
                             + (digit * 4).ljust(16, "0") + (digit * 2 * depth).ljust(10, "0"), space)
            for depth in depths]


@pytest.mark.parametrize("space", [PUBLISHED, FULL, FULL.narrowed((4, 8, 16, 32), 1), FULL.narrowed((8, 8, 8, 8), 8)])
def test_a_walk_comes_to_every_arch_once_by_exactly_its_blocks(space, rng):
    archs = some_archs(space, rng)
    found = replayed(prefix_tree.traversal(archs))
    assert sorted(leaf for leaf, _ in found) == list(range(len(archs)))
    assert all(path == archs[leaf].nodes() for leaf, path in found)


@pytest.mark.parametrize("space", [PUBLISHED, FULL, FULL.narrowed((4, 8, 16, 32), 1), FULL.narrowed((8, 8, 8, 8), 8)])
def test_every_beginning_that_archs_have_in_common_is_computed_once(space, rng):
    archs = some_archs(space, rng)
    steps = prefix_tree.traversal(archs)
    assert prefix_tree.nodes(steps) == len(prefixes(archs))
    paths = [path for _, path in replayed(steps)]
    for before, path, step in zip(paths, paths[1:], steps[1:]):
        kept = step.kept
        assert before[:kept] == path[:kept]
        assert kept in (len(before), len(path)) or before[kept] != path[kept]


def test_the_order_of_the_list_does_not_matter(rng):
    archs = some_archs(PUBLISHED, rng)
    order = rng.permutation(len(archs))
    steps, shuffled = prefix_tree.traversal(archs), prefix_tree.traversal([archs[place] for place in order])
    assert [step[:2] for step in steps] == [step[:2] for step in shuffled]
    assert [archs[step.leaf].blocks() for step in steps] == [archs[order[step.leaf]].blocks() for step in shuffled]


def test_one_arch_is_one_step_over_all_of_its_blocks(rng):
    arch = FULL.sample(rng)
    assert prefix_tree.traversal([arch]) == [prefix_tree.Step(0, arch.nodes(), 0)]


@pytest.mark.parametrize("depths", [(2, 3, 4, 5), (5, 4, 3, 2), (4, 2, 5, 3)])
def test_archs_that_end_within_one_another_share_all_but_the_last_blocks(depths):
    archs = of_depths(*depths)
    steps = prefix_tree.traversal(archs)
    assert prefix_tree.nodes(steps) == len(max(archs, key=lambda arch: arch.depths).nodes())
    assert [depths[step.leaf] for step in steps] == [2, 3, 4, 5]
    assert [len(step.added) for step in steps] == [9, 1, 1, 1]


def test_other_digits_of_the_same_widths_share_all_nodes_and_both_are_reported():
    space = FULL.narrowed((8, 8, 8, 8), 8)
    archs = [of_depths(3, space=space, digit=digit)[0] for digit in "1234567"]
    assert len({arch.code for arch in archs}) == 7 and len({arch.stages for arch in archs}) == 1
    steps = prefix_tree.traversal(archs)
    assert prefix_tree.nodes(steps) == len(archs[0].nodes())
    assert sorted(step.leaf for step in steps) == list(range(7))
    assert [step.added for step in steps[1:]] == [()] * 6


@pytest.mark.parametrize("count", [1, 2, 3, 7, 59, 60, 10 ** 6])
def test_shards_begin_with_a_whole_path_and_give_the_same_archs_together(rng, count):
    archs = [PUBLISHED.sample(rng) for _ in range(60)]
    steps = prefix_tree.traversal(archs)
    parts = prefix_tree.shards(steps, count)
    assert len(parts) == min(count, 60)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    found = []
    for part in parts:
        assert part[0].kept == 0
        found += replayed(part)
    assert found == replayed(steps)


@pytest.mark.parametrize("image_size, num_classes", [(224, 1000), (32, 10), (33, 7), (1, 1)])
def test_the_cost_of_one_arch_is_that_of_the_arch(rng, image_size, num_classes):
    for arch in (FULL.largest(), FULL.smallest(), *(FULL.sample(rng) for _ in range(10))):
        steps = prefix_tree.traversal([arch])
        cost = tree_forward.cost(steps, image_size, num_classes)
        assert cost.macs == arch.macs(image_size, num_classes) == prefix_tree.separate_macs([arch], image_size,
                                                                                            num_classes)
        assert cost.nodes == 1 + len(arch.blocks())


def test_the_cost_of_a_list_counts_every_node_and_every_classifier_once(rng):
    archs = some_archs(PUBLISHED, rng)
    expected = sum(arch.out_width * 10 for arch in archs)
    for path in prefixes(archs):
        size = 64
        for node in path:
            convolutions, size = node.layers(size), node.out_size(size)
        expected += sum(conv.macs for conv in convolutions)
    cost = tree_forward.cost(prefix_tree.traversal(archs), 64, 10)
    assert (cost.macs, cost.nodes) == (expected, len(prefixes(archs)))


def test_memory_is_that_of_the_worst_path_and_not_of_the_whole_walk(rng):
    archs = some_archs(PUBLISHED, rng)
    together = tree_forward.cost(prefix_tree.traversal(archs), 64, 10).path_bytes
    assert together == max(tree_forward.cost(prefix_tree.traversal([arch]), 64, 10).path_bytes for arch in archs)


@pytest.mark.slow
def test_the_published_list_is_412795_nodes_and_costs_1_586_instead_of_2_972_gmacs(published):
    archs = [entry.arch for entry in arch_list.read_list(published)]
    steps = prefix_tree.traversal(archs)
    cost, alone = tree_forward.cost(steps, 224, 1000), prefix_tree.separate_macs(archs, 224, 1000)
    assert cost.nodes == 412_795
    assert round(cost.macs / len(archs) / 1e9, 3) == 1.586
    assert round(alone / len(archs) / 1e9, 3) == 2.972
    assert round(alone / cost.macs, 3) == 1.874
