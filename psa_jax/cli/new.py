"""The commands that go on with a folder: `predict`, `score` and `match` for new cells, and `diagnose`."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import psa_jax
from psa_jax import io
from psa_jax.align.new import matched_codes
from psa_jax.cli.folder import Kept
from psa_jax.cli.jobs import make_matcher
from psa_jax.cli.output import write_table
from psa_jax.cli.reading import open_file, quietly
from psa_jax.cli.show import Show
from psa_jax.io.impute import batch_of, codes_of
from psa_jax.judge import diagnose as judge

PARTNERS = 5


@dataclasses.dataclass(frozen=True)
class Labels:
    """Columns of obs of new cells: of their treatments, strata and batches; None for those of training, if there."""

    treatment: str | None = None
    within: str | None = None
    batch: str | None = None


def predict(output: Path, show: Show, kept: Kept, file: Path, asked: Labels, fill_missing: bool) -> None:
    """Writes imputed values of new cells."""
    adata, found = _read(show, kept, file, asked)
    with show.stage("imputation", "imputed values"), show.noting(), quietly():
        out = io.impute_new(
            kept.alignment,
            kept.preparation,
            kept.reference(),
            adata,
            treatment=found.treatment,
            within=found.within,
            batch=found.batch,
            fill_missing=fill_missing,
        )
        out.write_h5ad(output)
    about = out.uns["psa"]
    show.say(f"  {out.n_obs} cells, {out.n_vars} features of {about['modality']} ({about['unit']})")
    _tell_new_batch(show, out.obs.get("psa_new_batch"))
    if far := int(np.isnan(out.X).any(axis=1).sum()):
        show.note(f"{far} of {out.n_obs} cells lie too far from all that was aligned: their values are NaN")
    _tell_mixed(show, kept, about["mixed"], out.n_obs, "obs['psa_mixed'] marks them")


def score(output: Path, show: Show, kept: Kept, file: Path, asked: Labels, fill_missing: bool) -> None:
    """Writes new cells with their scores and propensities beside all that they had."""
    adata, labels = _read(show, kept, file, asked, stay=False)  # all of it is written again
    alignment = kept.alignment
    with show.stage("scores", "scores"), show.noting(), quietly():
        x = jnp.asarray(kept.preparation.prepare(adata, fill_missing=fill_missing))
        scorer, fitted = alignment.scorer_a, alignment.fitted_a
        assert scorer is not None
        columns = [alignment.treatments[k] for k in np.asarray(scorer.treatments).tolist()]
        batch = batch_of(alignment, adata, labels.batch)
        chance = np.asarray(scorer.propensities(fitted.params, x, fitted.history.best_epoch.ndim, batch))
        adata.obsm["psa_scores"], adata.obsm["psa_propensities"] = np.asarray(alignment.score_a(x, batch)), chance
        if (other := alignment.new_batch(adata.n_obs, batch)) is not None:
            adata.obs["psa_new_batch"] = np.asarray(other)
        adata.obs["psa_treatment"] = np.asarray(columns, object)[chance.argmax(axis=1)]
        adata.uns["psa"] = {"version": psa_jax.__version__, "treatments": np.asarray(columns, object)}
        adata.write_h5ad(output)
    _tell_new_batch(show, adata.obs.get("psa_new_batch"))
    show.say(f"  {adata.n_obs} cells, scores and propensities of {len(columns)} treatments")
    show.print_notes()


def match(output: Path, show: Show, kept: Kept, file: Path, asked: Labels, fill_missing: bool) -> None:
    """Writes the best partners of new cells."""
    adata, found = _read(show, kept, file, asked)
    alignment = kept.alignment
    with show.stage("partners", "partners"), show.noting():
        t = codes_of(alignment, adata, found.treatment, found.within)
        x = kept.preparation.prepare(adata, fill_missing=fill_missing)
        batch = batch_of(alignment, adata, found.batch)
        probability, column = alignment.partners(x, t, k=PARTNERS, batch=batch)
        there = kept.cells()
    sizes = np.minimum(np.asarray(alignment.groups.sizes_a), np.asarray(alignment.groups.sizes_b))
    mixed = matched_codes(t, adata.n_obs, sizes, alignment.strata) < 0
    ranks = range(1, probability.shape[1] + 1)
    labels = {"treatment": (alignment.treatments, t if t.ndim == 1 else t[:, 0])}
    if alignment.strata is not None:
        labels["within"] = alignment.strata.names, t[:, 1]
    told = [np.asarray([*names, ""], object)[codes] for names, codes in labels.values()]
    header = [
        "cell",
        *labels,
        "mixed",
        *(f"{what}_{rank}" for rank in ranks for what in ("partner", "probability")),
    ]
    rows = (
        [cell, *own, int(unknown), *_best(there, js, ps)]
        for cell, own, unknown, js, ps in zip(
            adata.obs_names, zip(*told, strict=True), mixed, column, probability, strict=True
        )
    )
    write_table(output, header, rows)
    show.say(f"  {adata.n_obs} cells, {probability.shape[1]} partners each")
    _tell_new_batch(show, alignment.new_batch(adata.n_obs, batch))
    _tell_mixed(show, kept, int(mixed.sum()), adata.n_obs, "the column mixed marks them")


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


def _read(show: Show, kept: Kept, file: Path, asked: Labels, *, stay: bool = True) -> tuple[Any, Labels]:
    """The new cells, and the columns of their labels: those asked for, or those of training where they are there."""
    with show.stage("data", f"read {file.name}"), quietly():
        adata = open_file(file, stay=stay)
        if hasattr(adata, "mod"):
            if kept.preparation.modality not in adata.mod:
                raise ValueError(f"{file}: expected a modality {kept.preparation.modality!r}, got {list(adata.mod)}")
            adata = adata.mod[kept.preparation.modality]
    found = dataclasses.asdict(asked)
    for name, given in found.items():
        if given is None and (trained := kept.column(name)) in adata.obs:
            found[name] = trained
    return adata, Labels(**found)


def _tell_new_batch(show: Show, other: Any) -> None:
    if other is not None and (count := int(np.asarray(other).sum())):
        show.note(f"{count} of {len(other)} cells have no batch that training had: they are scored as of none")


def _tell_mixed(show: Show, kept: Kept, mixed: int, total: int, where: str) -> None:
    if mixed:
        if kept.alignment.strata is None:
            show.note(
                f"{mixed} of {total} cells have no treatment that was matched: treatments were mixed by their "
                f"propensities ({where})"
            )
        else:
            within = kept.column("within")
            show.note(
                f"{mixed} of {total} cells have no treatment and {within} that were matched: what is open was mixed, "
                f"treatments by their propensities, each {within} of one by its size (those of no known {within} among "
                f"them; {where})"
            )
    show.print_notes()
