"""The commands that go on with a folder: `predict`, `score` and `match` for new cells, and `diagnose`."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import psa_jax
from psa_jax import io
from psa_jax.cli.folder import Kept
from psa_jax.cli.jobs import make_matcher
from psa_jax.cli.output import write_table
from psa_jax.cli.reading import open_file, quietly
from psa_jax.cli.show import Show
from psa_jax.io.impute import codes_of
from psa_jax.judge import diagnose as judge

PARTNERS = 5


def predict(output: Path, show: Show, kept: Kept, file: Path, treatment: str | None, fill_missing: bool) -> None:
    """Writes imputed values of new cells."""
    adata, treatment = _read(show, kept, file, treatment)
    with show.stage("imputation", "imputed values"), show.noting(), quietly():
        out = io.impute_new(
            kept.alignment, kept.preparation, kept.reference(), adata, treatment=treatment, fill_missing=fill_missing
        )
        out.write_h5ad(output)
    about = out.uns["psa"]
    show.say(f"  {out.n_obs} cells, {out.n_vars} features of {about['modality']} ({about['unit']})")
    if far := int(np.isnan(out.X).any(axis=1).sum()):
        show.note(f"{far} of {out.n_obs} cells lie too far from all that was aligned: their values are NaN")
    _tell_mixed(show, about["mixed"], out.n_obs, "obs['psa_mixed'] marks them")


def score(output: Path, show: Show, kept: Kept, file: Path, fill_missing: bool) -> None:
    """Writes new cells with their scores and propensities beside all that they had."""
    adata, _ = _read(show, kept, file, None, stay=False)  # all of it is written again
    alignment = kept.alignment
    with show.stage("scores", "scores"), show.noting(), quietly():
        x = jnp.asarray(kept.preparation.prepare(adata, fill_missing=fill_missing))
        scorer, fitted = alignment.scorer_a, alignment.fitted_a
        assert scorer is not None
        names = alignment.names or tuple(map(str, range(alignment.groups.num_treatments)))
        columns = [names[k] for k in np.asarray(scorer.treatments).tolist()]
        chance = np.asarray(scorer.propensities(fitted.params, x, fitted.history.best_epoch.ndim))
        adata.obsm["psa_scores"], adata.obsm["psa_propensities"] = np.asarray(alignment.score_a(x)), chance
        adata.obs["psa_treatment"] = np.asarray(columns, object)[chance.argmax(axis=1)]
        adata.uns["psa"] = {"version": psa_jax.__version__, "treatments": np.asarray(columns, object)}
        adata.write_h5ad(output)
    show.say(f"  {adata.n_obs} cells, scores and propensities of {len(columns)} treatments")
    show.print_notes()


def match(output: Path, show: Show, kept: Kept, file: Path, treatment: str | None, fill_missing: bool) -> None:
    """Writes the best partners of new cells."""
    adata, treatment = _read(show, kept, file, treatment)
    alignment = kept.alignment
    with show.stage("partners", "partners"), show.noting():
        t = codes_of(alignment, adata, treatment)
        x = kept.preparation.prepare(adata, fill_missing=fill_missing)
        probability, column = alignment.partners(x, t, k=PARTNERS)
        there = kept.cells()
    sizes = np.minimum(np.asarray(alignment.groups.sizes_a), np.asarray(alignment.groups.sizes_b))
    mixed = ~((t >= 0) & (sizes[t] > 0))
    names = np.asarray(alignment.names, object)
    ranks = range(1, probability.shape[1] + 1)
    header = [
        "cell",
        "treatment",
        "mixed",
        *(f"{what}_{rank}" for rank in ranks for what in ("partner", "probability")),
    ]
    rows = (
        [cell, names[k] if k >= 0 else "", int(unknown), *_best(there, js, ps)]
        for cell, k, unknown, js, ps in zip(adata.obs_names, t, mixed, column, probability, strict=True)
    )
    write_table(output, header, rows)
    show.say(f"  {adata.n_obs} cells, {probability.shape[1]} partners each")
    _tell_mixed(show, int(mixed.sum()), adata.n_obs, "the column mixed marks them")


def diagnose(show: Show, kept: Kept, seed: int) -> None:
    """Prints what can be said of an alignment without true pairs."""
    used = kept.report["settings"]
    matcher = make_matcher(used["matcher"], used["eps"], used["relative_eps"], used["k"])
    with show.stage("diagnosis", "diagnosis"), show.noting():
        found = judge(jax.random.key(seed), kept.alignment, matcher=matcher)
    show.verbatim(str(found))
    show.print_notes()


def _best(names: np.ndarray, columns: np.ndarray, probabilities: np.ndarray) -> list[str]:
    """Names and probabilities in turn; nothing where there is no partner."""
    pairs = zip(columns.tolist(), probabilities.tolist(), strict=True)
    return [part for j, p in pairs for part in ((str(names[j]), f"{p:.6g}") if j >= 0 else ("", ""))]


def _read(show: Show, kept: Kept, file: Path, treatment: str | None, *, stay: bool = True) -> tuple[Any, str | None]:
    """The new cells, and the column of their treatments: the one asked for, or that of training where it is there."""
    with show.stage("data", f"read {file.name}"), quietly():
        adata = open_file(file, stay=stay)
        if hasattr(adata, "mod"):
            if kept.preparation.modality not in adata.mod:
                raise ValueError(f"{file}: expected a modality {kept.preparation.modality!r}, got {list(adata.mod)}")
            adata = adata.mod[kept.preparation.modality]
    if treatment is None and kept.treatment in adata.obs:
        treatment = kept.treatment
    return adata, treatment


def _tell_mixed(show: Show, mixed: int, total: int, where: str) -> None:
    if mixed:
        show.note(
            f"{mixed} of {total} cells have no treatment that was matched: treatments were mixed by their propensities "
            f"({where})"
        )
    show.print_notes()
