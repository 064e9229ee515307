"""The loss of the global batch is the loss: every method on two and four gloo processes against one, in doubles."""

import os
import socket
import sys
from pathlib import Path

import pytest
import torch

import launch
from understudy.losses import LOSSES

pytestmark = pytest.mark.slow

CASES = {
    "coss": ("coss", {"weight": 0.7}),
    "coss balanced": ("coss", {"weight": "balanced"}),
    "coss centered": ("coss_centered", {}),
    "simreg": ("simreg", {}),
    "seed": ("seed", {"queue": 12, "tau_teacher": 0.1}),
    "compress 1q": ("compress", {"queue": 12, "queues": 1}),
    "compress 2q": ("compress", {"queue": 12}),
    "isd": ("isd", {"queue": 12, "temperature": 0.1}),
    "disco": ("disco", {"queue": 12}),
    "bingo": ("bingo", {"queue": 12, "warmup": 2}),
    "smd": ("smd", {"warmup": 2}),
    "rkd": ("rkd", {}),
    "pkt": ("pkt", {}),
    "sp": ("sp", {"weight": 30}),
    "mse": ("mse", {}),
    "dist": ("dist", {}),
    "queue_kl": ("queue_kl", {"queue": 12}),
    "moco": ("moco", {"queue": 12}),
    "attndistill": ("attndistill", {"weight": 0.5}),
    "proteus": ("proteus", {}),
    "per process": ("coss", {"scope": "process"}),
}

TRAIN = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from understudy.losses import build
from understudy.train.distributed import Processes

def train(name, settings, data, rank, world):
    torch.manual_seed(0)
    model, loss = torch.nn.Linear(4, 3, dtype=torch.float64), build(name, **settings)
    loss.prepare(3, 3)
    if list(loss.parameters()): loss.double()
    wrapped = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.02)
    processes = Processes(rank, world, torch.device("cpu"))
    rows = data["x"].shape[2]
    mine = slice(rank * rows // world, (rank + 1) * rows // world)
    pick = lambda x, views: x[views[0]] if len(views) == 1 else x[list(views)]
    values = []
    for step in range(len(data["x"])):
        x = data["x"][step, :, mine]  # two views of the images, then the mixed ones
        tokens = data["tokens"][step, mine]  # of a class token and four patches
        made = wrapped(torch.cat([x.flatten(0, 1), tokens.flatten(0, 1)]))
        made, tokens = made.split([x.shape[1] * 3, len(tokens) * 5])
        made, tokens = made.unflatten(0, x.shape[:2]), tokens.unflatten(0, (-1, 5))
        given = {"student": pick(made, loss.needs.student_views)}
        if loss.needs.teacher: given["teacher"] = pick(data["teacher"][step, :, mine], loss.needs.teacher_views)
        if loss.needs.key: given["key"] = pick(data["key"][step, :, mine], loss.needs.key_views)
        if loss.needs.bags: given["bags"] = torch.arange(rows)[mine] // 2
        if loss.needs.passes: given["passes"] = float(step)
        if loss.needs.attention:
            given["student_attention"] = tokens.softmax(1).mT  # as many heads as dimensions
            given["teacher_attention"] = data["teacher_tokens"][step, mine].softmax(1).mT
        if loss.needs.tokens:
            given["student_tokens"], given["teacher_tokens"] = tokens, data["teacher_tokens"][step, mine]
        if loss.needs.masks:
            given["masked"], given["masks"] = torch.arange(1, len(tokens), 2), data["masks"][step, mine][1::2]
            given["masked_tokens"] = torch.where(given["masks"][:, :, None], loss.mask_token, tokens[1::2])
        if loss.needs.cutmix: given.update(mixed=made[2], share=data["share"][step, mine])
        total = loss(**given).total
        optimizer.zero_grad(); total.backward(); processes.average_gradients(loss); optimizer.step()
        total = total.detach().clone()
        if world > 1: dist.all_reduce(total)
        values.append(total / world)
    own = [parameter.detach().flatten() for parameter in loss.parameters()]
    return {"values": torch.stack(values), "weight": model.weight.detach(), "own": torch.cat([torch.zeros(1), *own])}
"""

WORKER = """
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
folder, cases = sys.argv[1], eval(sys.argv[2])
data = torch.load(folder + "/data.pt", weights_only=True)
found = {case: train(*method, data, rank, world) for case, method in cases.items()}
if rank == 0:
    torch.save(found, folder + "/out.pt")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict]:
    """Every case after three steps of training: by this process alone, and by two and four together."""
    folder: Path = tmp_path_factory.mktemp("processes")
    (folder / "script.py").write_text(TRAIN + WORKER)
    generator = torch.Generator().manual_seed(1)
    data = {
        name: torch.randn(3, views, 8, width, generator=generator, dtype=torch.float64)
        for name, views, width in [("x", 3, 4), ("teacher", 2, 3), ("key", 2, 3)]
    }
    for name, width in [("tokens", 4), ("teacher_tokens", 3)]:
        data[name] = torch.randn(3, 8, 5, width, generator=generator, dtype=torch.float64)
    data["masks"] = torch.rand(3, 8, 5, generator=generator).argsort(2) < 2  # two patches of each image
    data["share"] = torch.rand(3, 8, generator=generator, dtype=torch.float64)
    torch.save(data, folder / "data.pt")
    worlds = {}
    for world in (2, 4):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
        command = [sys.executable, str(folder / "script.py"), str(folder), repr(CASES)]
        workers = [launch.Popen(command, env={**common, "RANK": str(rank)}) for rank in range(world)]
        assert [worker.wait(timeout=200) for worker in workers] == [0] * world
        worlds[world] = torch.load(folder / "out.pt", weights_only=True)
    alone: dict = {}
    exec(TRAIN, alone)
    one = {case: alone["train"](*method, data, 0, 1) for case, method in CASES.items()}
    return one, worlds


def test_every_method_is_here():
    assert {name for name, _ in CASES.values()} == set(LOSSES)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("case", [case for case in CASES if case != "per process"])
def test_any_number_of_processes_equals_one(trained, case, world):
    one, two = trained[0][case], trained[1][world][case]
    torch.testing.assert_close(two["values"], one["values"], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(two["weight"], one["weight"], rtol=0, atol=1e-12)
    torch.testing.assert_close(two["own"], one["own"], rtol=0, atol=1e-12)
    assert (one["values"][1:] - one["values"][:-1]).abs().min() > 1e-6  # it does train


def test_process_scope_is_the_authors_and_differs(trained):
    one, two = trained[0]["per process"], trained[1][2]["per process"]
    assert (two["values"] - one["values"]).abs().max() > 1e-3
