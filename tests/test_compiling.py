"""torch.compile into one graph, forward and backward, and torch.export: every mixer, against the model itself."""

import json
import subprocess
import sys

import pytest
from in_process import environment

from bestiary.spec import names

pytestmark = pytest.mark.slow

# In a process of its own: run-time checks of shapes and torch.compile do not go together.
SCRIPT = '''
import json, sys, warnings
import torch
from torch import nn
from bestiary.model import Model
from bestiary.spec import parse

# Each turn of a loop over tokens or chunks is compiled, the same code again.
LENGTHS = dict.fromkeys(("lstm", "m2rnn", "pd_ssm", "slstm"), 9)
LENGTHS |= dict.fromkeys(("atlas", "hola", "lattice", "miras", "titans"), 20)  # whose chunks have 16

warnings.simplefilter("ignore")
torch.set_num_threads(1)


class Logits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens)[0]


def compiled(model, tokens):
    return torch.compile(model, fullgraph=True, backend="aot_eager")(tokens)


def exported(model, tokens):
    return torch.export.export(model, (tokens,)).module()(tokens)


def difference(run, model, tokens):
    """The largest between the logits, and between the gradients, of the model and of what was made of it."""
    wanted, found = model(tokens), run(model, tokens)
    if (name, run) == ("mesa_net", exported):  # torch.export drops the gradient that it says itself
        return float((wanted - found).abs().max())
    weights = list(model.parameters())
    pull = torch.randn(wanted.shape, dtype=wanted.dtype)
    both = [torch.autograd.grad((y * pull).sum(), weights, allow_unused=True) for y in (wanted, found)]
    pairs = [(wanted, found), *((a, b) for a, b in zip(*both) if a is not None or b is not None)]
    return max(float((a - b).abs().max() / (1 + a.abs().max())) for a, b in pairs)


for name in sys.argv[1:]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Logits(Model(20, dim=16, depth=1, pattern=parse("mixers", name))).double()
    tokens = torch.randint(20, (2, LENGTHS.get(name, 40)))  # more than a chunk, and no whole number of them
    told = {}
    for run in (compiled, exported):
        try:
            told[run.__name__] = difference(run, model, tokens)
        except Exception as fault:
            told[run.__name__] = f"{type(fault).__name__}: {str(fault).strip()[:200]}"
    print(json.dumps({name: told}), flush=True)
'''


@pytest.mark.timeout(900)
@pytest.mark.parametrize("group", [names("mixers")[i::2] for i in range(2)], ids=" ".join)
def test_every_mixer_compiles_into_one_graph_and_exports(group: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *group], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = {name: ways for line in done.stdout.splitlines() for name, ways in json.loads(line).items()}
    assert told.keys() == set(group)
    bad = {
        name: ways for name, ways in told.items() if not all(isinstance(d, float) and d <= 1e-8 for d in ways.values())
    }
    assert not bad
