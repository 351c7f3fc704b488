"""scConfluence: autoencoders whose latents follow a plan between the modalities, made of costs that one gives."""

import anndata
import mudata
import numpy as np
import pytorch_lightning
import scconfluence
from problem import main
from scipy.spatial.distance import cdist


def solve(problem, variant, seed):
    pytorch_lightning.seed_everything(seed)
    sides = {"a": anndata.AnnData(problem.x_a), "b": anndata.AnnData(problem.x_b)}
    for letter, cells in sides.items():
        cells.obs_names = [f"{letter} {i}" for i in range(cells.n_obs)]
        cells.var_names = [f"{letter}{i}" for i in range(cells.n_vars)]
    if variant == "our scores as costs":
        costs = cdist(problem.u, problem.v)
    else:
        costs = (problem.t_a[:, None] != problem.t_b[None]).astype(float)
    data = mudata.MuData(sides)
    data.uns["cross_a+b"], data.uns["cross_keys"] = costs, ["cross_a+b"]
    latents = min(16, *(cells.n_vars for cells in sides.values()))
    parts = {
        letter: scconfluence.unimodal.AutoEncoder(data[letter], modality=letter, n_latent=latents) for letter in "ab"
    }
    model = scconfluence.model.ScConfluence(data, unimodal_aes=parts)
    model.fit(save_path="run", use_cuda=False)
    latent = model.get_latent(use_cuda=False)
    return {f"z_{letter}": latent.loc[cells.obs_names].to_numpy(np.float32) for letter, cells in sides.items()}


if __name__ == "__main__":
    main(solve)
