"""scGLUE: autoencoders of both modalities in one space, guided by a graph of features, with labels."""

import networkx as nx
import numpy as np
import scglue
from anndata import AnnData
from pandas import DataFrame
from problem import main


def told(x, t, letter):
    """Features as scGLUE takes them; standardised ones are normal, given the cell."""
    cells = AnnData(x, obs=DataFrame({"treatment": [f"treatment {code}" for code in t]}, dtype="object"))
    cells.obs_names = [f"{letter} cell {i}" for i in range(len(x))]
    cells.var_names = names(letter, x.shape[1])
    scglue.models.configure_dataset(cells, "Normal", use_highly_variable=False, use_cell_type="treatment")
    return cells


def names(letter, number):
    return [f"{letter}{i}" for i in range(number)]


def guidance(problem):
    """Every feature, tied to itself and, both ways, to those it is linked with."""
    graph = nx.MultiDiGraph()
    for letter, x in (("a", problem.wide_a), ("b", problem.wide_b)):
        for name in names(letter, x.shape[1]):
            graph.add_edge(name, name, weight=1.0, sign=1)
    for i, j in problem.links:
        graph.add_edge(f"a{i}", f"b{j}", weight=1.0, sign=1)
        graph.add_edge(f"b{j}", f"a{i}", weight=1.0, sign=1)
    return graph


def solve(problem, variant, seed):
    cells = {
        letter: told(getattr(problem, f"fit_wide_{letter}"), getattr(problem, f"fit_t_{letter}"), letter)
        for letter in "ab"
    }
    model = scglue.models.fit_SCGLUE(
        cells, guidance(problem), init_kws={"random_seed": seed}, fit_kws={"directory": "glue"}
    )
    found = {}
    for letter in "ab":
        aligned = told(getattr(problem, f"wide_{letter}"), getattr(problem, f"t_{letter}"), letter)
        found[f"z_{letter}"] = np.asarray(model.encode_data(letter, aligned), np.float32)
    return found


if __name__ == "__main__":
    main(solve)
