"""uniPort: autoencoders of both modalities, their latents held together by unbalanced transport."""

import anndata
import numpy as np
import pandas as pd
import uniport
from problem import main

ITERATIONS = 10_000  # 30,000, its default, are beyond the limit of time


def told(x, t, which):
    """Cells with features in [0, 1], which its decoders end in."""
    low, high = x.min(0), x.max(0)
    scaled = ((x - low) / np.where(high > low, high - low, 1)).astype(np.float32)
    obs = pd.DataFrame({"cell_type": t.astype(str), "source": f"modality {which}", "domain_id": str(which)})
    obs["domain_id"] = obs["domain_id"].astype("category")
    obs.index = [f"{which} {i}" for i in range(len(x))]
    return anndata.AnnData(scaled, obs=obs)


def solve(problem, variant, seed):
    pair = [told(problem.x_a, problem.t_a, 0), told(problem.x_b, problem.t_b, 1)]
    prior = [uniport.get_prior(problem.t_a, problem.t_b)]  # one for each modality but the last
    if variant == "horizontal, our scores as common features, labels as prior":
        scores = np.concatenate([problem.u, problem.v])
        common = anndata.AnnData(told(scores, np.zeros(len(scores)), 0).X, obs=pd.concat([one.obs for one in pair]))
        common.obs["domain_id"] = common.obs["domain_id"].astype("category")
        found, plans = uniport.Run(
            pair, adata_cm=common, mode="h", prior=prior, save_OT=True, seed=seed, iteration=ITERATIONS
        )
    else:
        found, plans = uniport.Run(pair, mode="d", prior=prior, save_OT=True, seed=seed, iteration=ITERATIONS)
    z, n = np.asarray(found.obsm["latent"], np.float32), len(problem.x_a)
    (plan,) = plans.values()
    return {"plan": np.asarray(plan, np.float32), "z_a": z[:n], "z_b": z[n:]}


if __name__ == "__main__":
    main(solve)
