"""A backend of somebody else's: smooth neighbour shells and a perceptron, with files of its own.

The energy of an atom is a perceptron's, of how much of each element stands in each of a few
Gaussian shells around it. A file is a safetensors file whose metadata say how it was made.
"""

import json
from itertools import accumulate

import torch
from ase.neighborlist import neighbor_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from e3sparse.errors import ConfigError
from e3sparse.layers.layouts import Species
from e3sparse.potentials.backends import Backend, Potential, Prediction, chosen_head

FORMAT = "shells 1"


class Batch(dict):
    """Tensors of several structures."""

    def to(self, device):
        return Batch({name: part.to(device) for name, part in self.items()})


class Shells(nn.Module):
    """Energies of atoms from the elements in the shells around them."""

    def __init__(self, numbers, cutoff, shells, width):
        super().__init__()
        self.made_of = {"numbers": numbers, "cutoff": cutoff, "shells": shells, "width": width}
        self.register_buffer("centres", torch.linspace(0.5, cutoff - 0.5, shells))
        self.embedding = nn.Linear(len(numbers) * (shells + 1), width)
        self.hidden = nn.Linear(width, width)
        self.readout = nn.Linear(width, 1)
        self.shift = nn.Parameter(torch.zeros(len(numbers)))

    def features(self, vectors, ends, kinds):
        """Return (N, width) from edges (R, 3), their ends (2, R) and the elements' indices (N,)."""
        length = vectors.norm(dim=1)  # (R,)
        cutoff = self.made_of["cutoff"]
        near = (1 - (length / cutoff) ** 2).clamp(min=0) ** 4
        shell = torch.exp(-2 * (length[:, None] - self.centres) ** 2) * near[:, None]  # (R, S)
        onehot = nn.functional.one_hot(kinds, len(self.shift)).to(vectors)  # (N, Z)
        edges = (shell[:, :, None] * onehot[ends[1]][:, None, :]).flatten(1)  # (R, S Z)
        seen = edges.new_zeros(len(kinds), edges.shape[1]).index_add(0, ends[0], edges)
        first = torch.tanh(self.embedding(torch.cat([onehot, seen], dim=1)))
        return torch.tanh(self.hidden(first))

    def forward(self, vectors, ends, kinds):
        return self.readout(self.features(vectors, ends, kinds)).squeeze(1) + self.shift[kinds]


class ShellsPotential(Potential):
    """A `Shells` with neighbour lists by ASE."""

    suffix = ".shells"
    fold_into = {}  # noqa: RUF012
    framework = {"shells": "1.0"}  # noqa: RUF012

    def __init__(self, name, module):
        self.name, self.module = name, module
        self.cutoff = module.made_of["cutoff"]
        self.species = Species(tuple(module.made_of["numbers"]))

    def graph(self, atoms):
        i, j, shifts = neighbor_list("ijS", atoms, self.cutoff)
        kinds = [self.species.numbers.index(z) for z in atoms.numbers]
        offsets = torch.tensor(shifts @ atoms.cell.array, dtype=self.dtype)
        return Batch(
            positions=torch.tensor(atoms.positions, dtype=self.dtype),
            kinds=torch.tensor(kinds),
            ends=torch.tensor([i, j]).reshape(2, -1),
            offsets=offsets,
            volume=torch.tensor([abs(atoms.cell.volume) or 1.0], dtype=self.dtype),
        )

    def collate(self, graphs):
        atoms = [len(graph["kinds"]) for graph in graphs]
        starts = accumulate(atoms[:-1], initial=0)
        ends = [graph["ends"] + start for graph, start in zip(graphs, starts, strict=True)]
        names = ("positions", "kinds", "offsets", "volume")
        joined = {name: torch.cat([graph[name] for graph in graphs]) for name in names}
        frame = torch.arange(len(graphs)).repeat_interleave(torch.tensor(atoms))
        return Batch(joined, ends=torch.cat(ends, dim=1), frame=frame)

    def forward(self, batch):
        ends, frame = batch["ends"], batch["frame"]
        edges = batch["positions"][ends[1]] - batch["positions"][ends[0]] + batch["offsets"]
        edges = edges.detach().requires_grad_(True)  # (R, 3)
        energies = self.module(edges, ends, batch["kinds"])  # (N,)
        energy = energies.new_zeros(len(batch["volume"])).index_add(0, frame, energies)
        (by_edge,) = torch.autograd.grad(energy.sum(), edges, create_graph=self.module.training)
        forces = torch.zeros_like(batch["positions"])
        forces = forces.index_add(0, ends[0], by_edge).index_add(0, ends[1], -by_edge)
        pairs = edges[:, :, None] * by_edge[:, None, :]
        strain = pairs.new_zeros(len(energy), 3, 3).index_add(0, frame[ends[0]], pairs)
        stress = (strain + strain.mT) / (2 * batch["volume"][:, None, None])
        return Prediction(energy, forces, stress, geometry=(edges, frame[ends[0]]))

    def write(self, path):
        made_of = json.dumps(self.module.made_of)
        save_file(self.module.state_dict(), path, {"format": FORMAT, "made_of": made_of})

    def shift_energies(self, shifts):
        with torch.no_grad():
            for number, shift in shifts.items():
                self.module.shift[self.species.numbers.index(number)] += shift

    def reinitialize(self, seed):
        torch.manual_seed(seed)
        for layer in (self.module.embedding, self.module.hidden, self.module.readout):
            layer.reset_parameters()


class ShellsBackend(Backend):
    """Files of `ShellsPotential.save`."""

    name = "shells"

    def model_names(self):
        return ()

    def recognises(self, path):
        return path.suffix == ".shells"

    def load(self, model, *, device, dtype, head):
        chosen_head(model, (), head)
        try:
            with safe_open(model, "pt") as file:
                made_of = json.loads(file.metadata()["made_of"])
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise ConfigError(f"'{model}' is no file of shells ({error}).") from error
        module = Shells(**made_of)
        module = module.to(weights["shift"].dtype)
        module.load_state_dict(weights)
        return ShellsPotential(model, module.to(device, dtype))
