"""Against the real learn2learn: its tasksets over our images, and our evaluation on its tasksets."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import torch

from fewshot_mcl.data import Episodes, EpisodeSampler, ImageStore
from fewshot_mcl.errors import UserError
from fewshot_mcl.evaluation import embed, evaluate_episodes
from fewshot_mcl.interop import learn2learn as adapter
from fewshot_mcl.interop.torchvision import store_of
from fewshot_mcl.networks import create_backbone

# learn2learn imports gym and other packages that are no longer kept up.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

CLASSES, IMAGES, SIDE = 8, 10, 16
STATISTICS = {"mean": torch.tensor([0.45]), "std": torch.tensor([0.25])}


@pytest.fixture(scope="module")
def l2l():
    import learn2learn

    return learn2learn


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Images this small are not worth waiting for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def class_images(per_class=IMAGES, seed=0):
    """(CLASSES * per_class, 1, SIDE, SIDE) uint8, class by class: a pattern of each class under strong noise."""
    draw = torch.Generator().manual_seed(seed)
    patterns = 40 * torch.randn(CLASSES, 1, 1, SIDE, SIDE, generator=draw)
    noise = 60 * torch.randn(CLASSES, per_class, 1, SIDE, SIDE, generator=draw)
    return (128 + patterns + noise).clamp(0, 255).to(torch.uint8).flatten(0, 1)


@pytest.fixture(scope="module")
def store():
    labels = torch.arange(CLASSES).repeat_interleave(IMAGES)
    return ImageStore(class_images(), labels, [f"class {c}" for c in range(CLASSES)])


@pytest.fixture(scope="module")
def network():
    """A conv4 whose batch norms would give other features in training mode."""
    torch.manual_seed(0)
    net = create_backbone("conv4", in_channels=1, image_size=SIDE)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    return net


class Listed:
    """The least that counts as a taskset: given tasks."""

    def __init__(self, *tasks):
        self.tasks, self.num_tasks = tasks, len(tasks)

    def __getitem__(self, number):
        return self.tasks[number]


def slow_accuracy(network, images, labels, shot):
    """Nearest class mean, one image and one class at a time; images are floating point within [0, 1]."""
    with torch.no_grad():
        vectors = [network((image[None] - 0.45) / 0.25)[0].double() for image in images]
    rows = {}
    for vector, label in zip(vectors, labels.tolist()):
        rows.setdefault(label, []).append(vector)
    centres = {label: sum(mine[:shot]) / shot for label, mine in rows.items()}
    hits = [
        label == min(centres, key=lambda other: float((vector - centres[other]).square().sum()))
        for label, mine in rows.items()
        for vector in mine[shot:]
    ]
    return sum(hits) / len(hits)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b))


def test_taskset_draws_whole_classes_of_store_images(l2l, store):
    tasks = adapter.taskset(store, way=5, shot=2, query=3, num_tasks=20)
    assert isinstance(tasks, l2l.data.Taskset)
    assert len(tasks) == 20
    number_of = {bytes(image.numpy()): number for number, image in enumerate(store.images)}
    seen = set()
    for images, labels in tasks:
        assert (images.shape, images.dtype) == ((25, 1, SIDE, SIDE), torch.uint8)
        assert labels.bincount().tolist() == [5] * 5
        numbers = torch.tensor([number_of[bytes(image.numpy())] for image in images])
        assert len(numbers.unique()) == 25
        pairs = set(zip(labels.tolist(), store.labels[numbers].tolist()))
        assert len(pairs) == 5, "a label of the task is one class of the store, and the other way round"
        seen |= {name for _, name in pairs}
    assert seen == set(range(CLASSES))


def test_task_depends_on_seed_and_number_alone(store):
    options = {"way": 3, "shot": 1, "query": 2}
    first = adapter.taskset(store, **options, num_tasks=6, seed=4)
    in_turn = list(first)
    random.seed(99)
    backwards = adapter.taskset(store, **options, num_tasks=6, seed=4)
    assert all(same(backwards[i], in_turn[i]) for i in reversed(range(6)))
    assert all(same(first[i], in_turn[i]) for i in range(6))
    endless, again = (adapter.taskset(store, **options, seed=4) for _ in range(2))
    assert all(same(endless[0], task) for task in in_turn)
    assert all(same(next(iter(again)), task) for task in in_turn)
    assert not same(adapter.taskset(store, **options, num_tasks=6, seed=5)[0], in_turn[0])


def test_taskset_leaves_global_random_states_alone(store):
    python, torch_state = random.getstate(), torch.get_rng_state()
    for num_tasks in (-1, 4):
        draws = []
        for _ in range(2):
            tasks = adapter.taskset(store, way=3, shot=1, query=2, num_tasks=num_tasks, seed=1)
            draws.append([tasks.sample() for _ in range(5)] + [tasks[0], next(iter(tasks))])
        assert all(same(a, b) for a, b in zip(*draws))
    assert random.getstate() == python
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_random_state_is_restored_where_a_draw_fails():
    state = random.getstate()
    with pytest.raises(ZeroDivisionError), adapter._python_random(3):
        _ = 1 / 0
    assert random.getstate() == state


def test_building_a_taskset_loads_no_image(store, monkeypatch):
    monkeypatch.setattr(adapter._StoreImages, "__getitem__", lambda *_: pytest.fail("loaded an image"))
    tasks = adapter.taskset(store, way=3, shot=1, query=2)
    assert tasks.dataset.labels_to_indices[2] == list(range(20, 30))
    assert tasks.dataset.indices_to_labels[29] == 2


def test_classes_without_images_are_never_drawn():
    labels = torch.tensor([0, 2, 4]).repeat_interleave(IMAGES)
    store = ImageStore(class_images()[: len(labels)], labels, list("abcde"))
    tasks = adapter.taskset(store, way=3, shot=1, query=2, num_tasks=5)
    assert sorted(tasks.dataset.labels) == [0, 2, 4]
    assert all(len(images) == 9 for images, _ in tasks)


def test_taskset_of_is_the_episodes_in_order(l2l, store):
    episodes = EpisodeSampler(store.labels, way=4, shot=2, query=3, seed=1).sample(7)
    tasks = adapter.taskset_of(store, episodes)
    assert isinstance(tasks, l2l.data.Taskset)
    assert len(tasks) == 7
    for number, (images, labels) in enumerate(tasks):
        rows = [torch.cat([episodes.support[number, k], episodes.query[number, k]]) for k in range(4)]
        assert torch.equal(images, store.images[torch.cat(rows)])
        assert labels.tolist() == [k for k in range(4) for _ in range(5)]
        assert same(tasks[number], (images, labels))
    with pytest.raises(IndexError, match="7 tasks"):
        tasks[7]
    (support, _), (_, targets) = l2l.data.partition_task(*tasks[3], shots=2)
    assert torch.equal(support, store.images[episodes.support[3].flatten()])
    assert len(targets) == 12


def same_episodes(a, b):
    return same((a.classes, a.support, a.query), (b.classes, b.support, b.query))


def test_episodes_go_there_and_come_back(store):
    episodes = EpisodeSampler(store.labels, way=4, shot=2, query=3, seed=1).sample(7)
    tasks = adapter.taskset_of(store, episodes)
    back = adapter.episodes_of(tasks, shot=2)
    assert same_episodes(back, episodes)
    assert back.digest == episodes.digest
    assert same_episodes(adapter.episodes_of(tasks, shot=2, episodes=3), episodes[:3])


def test_episodes_of_classes_that_a_store_lacks_keep_their_numbers():
    labels = torch.tensor([0, 2, 4]).repeat_interleave(IMAGES)
    store = ImageStore(class_images()[: len(labels)], labels, list("abcde"))
    episodes = EpisodeSampler(store.labels, way=3, shot=1, query=2, seed=1).sample(4)
    assert same_episodes(adapter.episodes_of(adapter.taskset_of(store, episodes), shot=1), episodes)


def test_their_tasks_are_our_episodes(l2l):
    """Labels of any value, images in any order; the store is what `store_of` makes of the very same data set."""
    order = torch.randperm(CLASSES * IMAGES, generator=torch.Generator().manual_seed(6))
    labels = (10 * torch.arange(CLASSES).repeat_interleave(IMAGES) - 35)[order]
    dataset = l2l.data.MetaDataset(torch.utils.data.TensorDataset(class_images()[order], labels))
    transforms = l2l.data.transforms
    steps = [transforms.NWays(dataset, n=4), transforms.KShots(dataset, k=5), transforms.LoadData(dataset)]
    tasks = l2l.data.Taskset(dataset, steps, num_tasks=9)
    episodes, store = adapter.episodes_of(tasks, shot=2), store_of(dataset)
    assert episodes.support.shape == (9, 4, 2)
    assert store.class_names == tuple(str(10 * k - 35) for k in range(CLASSES))
    assert torch.equal(store.labels[episodes.query], episodes.classes[..., None].expand(-1, -1, 3))
    for number, (images, targets) in enumerate(tasks):
        rows = torch.cat([episodes.support[number], episodes.query[number]], 1)
        for label, mine in zip(episodes.classes[number].tolist(), rows):
            assert torch.equal(store.images[mine], images[targets == 10 * label - 35])


def test_tasks_that_are_no_episodes_are_refused(l2l, store):
    endless = adapter.taskset(store, way=3, shot=1, query=2)
    tasks = adapter.taskset(store, way=3, shot=1, query=2, num_tasks=4)
    for wrong, options, message in (
        (endless, {"shot": 1}, "num_tasks"),
        (tasks, {"shot": 1, "episodes": 5}, "5 episodes of 4 tasks"),
        (tasks, {"shot": 3}, "task 0 is no episode"),
    ):
        with pytest.raises(UserError, match=message):
            adapter.episodes_of(wrong, **options)
    steps = [l2l.data.transforms.KShots(tasks.dataset, k=40, replacement=True)]
    with pytest.raises(UserError, match="each once"):
        adapter.episodes_of(l2l.data.Taskset(tasks.dataset, steps, num_tasks=1), shot=1)


@pytest.mark.parametrize(
    ("shot", "options"), [(1, {}), (3, {}), (1, {"metric": "cosine", "scale": 10.0})], ids=["1", "3", "cosine"]
)
def test_accuracies_equal_our_own_evaluation(store, network, shot, options):
    episodes = EpisodeSampler(store.labels, way=5, shot=shot, query=5, seed=2).sample(60)
    ours = evaluate_episodes(embed(network, store, **STATISTICS), episodes, **options)
    theirs = adapter.evaluate_taskset(
        network, adapter.taskset_of(store, episodes), way=5, shot=shot, episodes=60, **STATISTICS, **options
    )
    assert theirs.accuracies.dtype == torch.float64
    assert torch.equal(theirs.accuracies, ours.accuracies)
    assert 0.25 < ours.mean < 0.95, "neither chance nor perfect, or equality would say little"
    assert ours.std > 0.05


def test_plain_taskset_equals_a_slow_computation(l2l, network):
    """Floating-point images, labels of any value, classes interleaved, classes of unequal size."""
    images = class_images().float() / 255
    labels = 10 * torch.arange(CLASSES).repeat_interleave(IMAGES) - 35
    keep = torch.arange(len(images)) != 3  # one class has an image fewer
    dataset = l2l.data.MetaDataset(torch.utils.data.TensorDataset(images[keep], labels[keep]))
    transforms = [
        l2l.data.transforms.NWays(dataset, n=4),
        lambda task: random.sample(task, len(task)),
        l2l.data.transforms.LoadData(dataset),
    ]
    random.seed(5)
    tasks = l2l.data.Taskset(dataset, transforms, num_tasks=6)
    result = adapter.evaluate_taskset(network.train(), tasks, way=4, shot=2, episodes=6, **STATISTICS)
    assert network.training
    network.eval()
    assert {len(task_images) for task_images, _ in tasks} == {39, 40}
    expected = [slow_accuracy(network, *task, shot=2) for task in tasks]
    assert result.accuracies.tolist() == expected
    assert torch.equal(images, class_images().float() / 255), "the caller's images are not written to"


def test_floating_point_and_uint8_images_give_the_same(store, network):
    images, labels = adapter.taskset(store, way=5, shot=1, query=5, seed=3)[0]
    scaled = (images.float() / 255).to(memory_format=torch.channels_last)
    kept = scaled.clone()
    tasks = Listed((images, labels), (scaled, labels), (scaled.double(), labels.int()))
    result = adapter.evaluate_taskset(network, tasks, way=5, shot=1, episodes=3, **STATISTICS)
    assert len(result.accuracies.unique()) == 1
    assert torch.equal(scaled, kept)


def test_endless_tasksets_and_the_mode_of_the_network(store, network):
    tasks = [adapter.taskset(store, way=3, shot=1, query=4, num_tasks=count, seed=8) for count in (-1, 10)]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for training in (True, False):
        network.train(training)
        results = [adapter.evaluate_taskset(network, t, way=3, shot=1, episodes=5, **STATISTICS) for t in tasks]
        assert network.training is training
        tasks[0] = adapter.taskset(store, way=3, shot=1, query=4, seed=8)
        assert torch.equal(results[0].accuracies, results[1].accuracies)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


IMAGE = torch.zeros(6, 1, SIDE, SIDE)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGE, torch.tensor([7, 7, -4, 9, 9, 9]), "task 1: label -4 has 1 image; 1-shot needs at least 2"),
        (IMAGE, torch.tensor([0, 0, 1, 1, 2, 3]), "task 1: it has 4 labels, not 3"),
        (IMAGE + 200, LABELS, "not torch.float32 from 200 to 200"),
        (IMAGE - 0.5, LABELS, r"within \[0, 1\]"),
        (IMAGE / 0, LABELS, r"within \[0, 1\]"),
        (IMAGE.long(), LABELS, "not torch.int64"),
        (IMAGE, LABELS.float(), "labels must be integers"),
        (IMAGE.expand(-1, 3, -1, -1), LABELS, r"expected \(B, 1, H, W\)"),
        (IMAGE, LABELS[:5], r"labels of shape \(5,\)"),
        (IMAGE[:, 0], LABELS, r"shape \(6, 16, 16\)"),
    ],
)
def test_unfit_tasks_are_refused(network, images, labels, message):
    network.train()
    with pytest.raises(UserError, match=message):
        adapter.evaluate_taskset(
            network, Listed((IMAGE, LABELS), (images, labels)), way=3, shot=1, episodes=2, **STATISTICS
        )
    assert network.training


def test_unfit_requests_are_refused(store, network):
    episodes = EpisodeSampler(store.labels, way=3, shot=1, query=2).sample(4)
    tasks = adapter.taskset_of(store, episodes)
    with pytest.raises(UserError, match="4 tasks: use episodes=4"):
        adapter.evaluate_taskset(network, tasks, way=3, shot=1, **STATISTICS)
    with pytest.raises(UserError, match="at least 1"):
        adapter.evaluate_taskset(network, tasks, way=3, shot=0, episodes=4, **STATISTICS)
    with pytest.raises(UserError, match="class 'class 0' has 10 images"):
        adapter.taskset(store, way=3, shot=5, query=6)
    with pytest.raises(UserError, match="9-way episodes need 9 classes"):
        adapter.taskset(store, way=9, shot=1, query=1)
    with pytest.raises(UserError, match="num_tasks"):
        adapter.taskset(store, way=3, shot=1, query=1, num_tasks=0)
    with pytest.raises(UserError, match="at least one episode"):
        adapter.taskset_of(store, episodes[:0])
    shifted = Episodes(episodes.classes, episodes.support + IMAGES, episodes.query)
    beyond = Episodes(episodes.classes, episodes.support + len(store), episodes.query)
    for wrong in (shifted, beyond):
        with pytest.raises(UserError, match="not drawn from this store"):
            adapter.taskset_of(store, wrong)


def test_missing_library_says_what_to_install(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    episodes = EpisodeSampler(store.labels, way=3, shot=1, query=2).sample(1)
    for call in (lambda: adapter.taskset(store, way=3, shot=1, query=1), lambda: adapter.taskset_of(store, episodes)):
        with pytest.raises(UserError, match=r"fewshot-mcl\[learn2learn\].*README"):
            call()


def test_importing_the_adapter_does_not_import_the_library():
    code = "import sys, fewshot_mcl.interop.learn2learn; sys.exit('learn2learn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
