"""The loss of the global batch is the loss: two gloo processes against one, in double precision."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from understudy.losses import build
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
folder, name, settings = sys.argv[1], sys.argv[2], eval(sys.argv[3])
data = torch.load(folder + "/data.pt", weights_only=True)
model = torch.nn.Linear(4, 3, dtype=torch.float64)
model.load_state_dict(data["model"])
model, loss = DistributedDataParallel(model), build(name, **settings)
optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
values = []
for x, other in zip(data["x"], data["other"]):
    mine = slice(rank * len(x) // world, (rank + 1) * len(x) // world)
    terms = loss(model(x[mine]), other[mine])
    optimiser.zero_grad(); terms.total.backward(); optimiser.step()
    total = terms.total.detach().clone(); dist.all_reduce(total); values.append(total / world)
if rank == 0:
    torch.save({"weight": model.module.weight.detach(), "values": torch.stack(values)}, folder + "/out.pt")
dist.destroy_process_group()
"""


def trained(tmp_path: Path, world: int, name: str, settings: dict) -> dict:
    (tmp_path / "script.py").write_text(SCRIPT)
    generator = torch.Generator().manual_seed(1)
    x, other = (torch.randn(5, 8, width, generator=generator, dtype=torch.float64) for width in (4, 3))
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    model = {"weight": weight, "bias": torch.zeros(3, dtype=torch.float64)}
    torch.save({"x": x, "other": other, "model": model}, tmp_path / "data.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path), name, repr(settings)]
    workers = [subprocess.Popen(command, env={**common, "RANK": str(rank)}) for rank in range(world)]
    assert [worker.wait(timeout=120) for worker in workers] == [0] * world
    return torch.load(tmp_path / "out.pt", weights_only=True)


@pytest.mark.parametrize(("name", "settings"), [("coss", {"weight": 0.7}), ("moco", {"queue": 12})])
def test_two_processes_equal_one(tmp_path, name, settings):
    one, two = trained(tmp_path, 1, name, settings), trained(tmp_path, 2, name, settings)
    torch.testing.assert_close(two["values"], one["values"], rtol=0, atol=1e-12)
    torch.testing.assert_close(two["weight"], one["weight"], rtol=0, atol=1e-12)


def test_process_scope_is_the_authors_and_differs(tmp_path):
    one = trained(tmp_path, 1, "coss", {"scope": "process"})
    two = trained(tmp_path, 2, "coss", {"scope": "process"})
    assert (two["values"] - one["values"]).abs().max() > 1e-3
