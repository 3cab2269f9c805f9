"""Projects of chemistry, physics and biology."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from projects.running import first, given_to_trainer, project

MOLECULES = ["CCO", "c1ccccc1", "CC(=O)O", "CCN", "CCCl", "C1CCCCC1", "CC(C)O", "c1ccncc1"]


@project(
    "chemprop MPNN",
    expected={"starved_channels": "of 8 molecules, what fires in one unit is zero in the last round of messages"},
)
def _chemprop() -> tuple[Any, Any]:
    chemprop = import_module("chemprop")
    points = [chemprop.data.MoleculeDatapoint.from_smi(s, [float(len(s))]) for s in 4 * MOLECULES]
    loader = chemprop.data.build_dataloader(chemprop.data.MoleculeDataset(points), batch_size=8, shuffle=False)
    module = chemprop.models.MPNN(
        chemprop.nn.BondMessagePassing(d_h=16),
        chemprop.nn.MeanAggregation(),
        chemprop.nn.RegressionFFN(input_dim=16, hidden_dim=16),
        batch_norm=True,
    )
    return module, first(loader)


@project("pina PINN")
def _pina() -> tuple[Any, Any]:
    pina = import_module("pina")
    problem = import_module("pina.problem.zoo").Poisson2DSquareProblem()
    problem.discretise_domain(20, "random")
    model = import_module("pina.model").FeedForward(2, 1, inner_size=12, n_layers=2)

    class Solver(import_module("pina.solver").PINN):  # type: ignore[misc]
        def on_fit_start(self) -> None:
            self.trainer.logging_kwargs = {}  # what that project's Trainer has beyond Lightning's

    solver = Solver(problem, model)
    whole = {"train_size": 1.0, "val_size": 0.0, "test_size": 0.0}
    trainer = pina.Trainer(solver, max_epochs=2, accelerator="cpu", **whole)
    return given_to_trainer(trainer.train, in_batches=False)


@project("SchNetPack forces")
def _schnetpack() -> tuple[Any, Any]:
    spk = import_module("schnetpack")
    pairwise = spk.atomistic.PairwiseDistances()
    schnet = spk.representation.SchNet(
        n_atom_basis=16,
        n_interactions=2,
        radial_basis=spk.nn.GaussianRBF(n_rbf=8, cutoff=5.0),
        cutoff_fn=spk.nn.CosineCutoff(5.0),
    )
    energy = spk.atomistic.Atomwise(n_in=16, output_key="energy")
    forces = spk.atomistic.Forces(energy_key="energy", force_key="forces")
    model = spk.model.NeuralNetworkPotential(schnet, input_modules=[pairwise], output_modules=[energy, forces])
    outputs = [
        spk.task.ModelOutput("energy", torch.nn.MSELoss(), loss_weight=0.1),
        spk.task.ModelOutput("forces", torch.nn.MSELoss(), loss_weight=0.9),
    ]
    module = spk.task.AtomisticTask(model, outputs, optimizer_args={"lr": 1e-3})
    return module, [_atoms() for _ in range(4)]


def _atoms(molecules: int = 3, atoms: int = 5) -> dict[str, Any]:
    n = molecules * atoms
    owner = torch.arange(molecules).repeat_interleave(atoms)
    i, j = ((owner[:, None] == owner) & ~torch.eye(n, dtype=torch.bool)).nonzero().unbind(1)
    return {
        "_atomic_numbers": torch.randint(1, 9, (n,)),
        "_positions": torch.randn(n, 3),
        "_idx_m": owner,
        "_idx_i": i,
        "_idx_j": j,
        "_offsets": torch.zeros(len(i), 3),
        "_n_atoms": torch.full((molecules,), atoms),
        "_idx": torch.arange(molecules),
        "energy": torch.randn(molecules),
        "forces": torch.randn(n, 3),
    }


@project(
    "scvi-tools SCVI",
    expected={"unwatched_layers": "the encoder of library sizes is there and not used where these are observed"},
)
def _scvi() -> tuple[Any, Any]:
    scvi = import_module("scvi")
    scvi.settings.seed = 0  # its splits of the data have random numbers of their own
    counts = torch.poisson(torch.full((64, 20), 3.0)).numpy()
    data = import_module("anndata").AnnData(counts, obs={"batch": ["first", "second"] * 32})
    scvi.model.SCVI.setup_anndata(data, batch_key="batch")
    model = scvi.model.SCVI(data, n_hidden=16, n_latent=4)
    return given_to_trainer(lambda: model.train(max_epochs=2, accelerator="cpu", batch_size=16, train_size=1.0))


@project("rl4co PPO by manual optimization")
def _rl4co() -> tuple[Any, Any]:
    environment = import_module("rl4co.envs").TSPEnv(generator_params={"num_loc": 6})
    small = {"embed_dim": 16, "num_heads": 2, "num_encoder_layers": 1, "feedforward_hidden": 16}
    policy = import_module("rl4co.models.zoo.am").AttentionModelPolicy(env_name="tsp", **small)
    critic = {"embed_dim": 16, "hidden_dim": 16}
    sizes = {"batch_size": 8, "train_data_size": 32, "mini_batch_size": 8}
    return import_module("rl4co.models.rl").PPO(environment, policy, critic_kwargs=critic, **sizes), None
