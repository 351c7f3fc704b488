import dataclasses

import jax
import numpy as np
import pytest

import psa_jax as psa

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def close():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(scope="module")
def alignment():
    """Fourteen treatments, the last one in a only."""
    rng = np.random.default_rng(0)
    t_a, t_b = np.arange(140) % 14, np.arange(91) % 13
    centres = 3 * rng.standard_normal((14, 6)).astype(np.float32)
    noise = [rng.standard_normal((n, 6)).astype(np.float32) for n in (140, 91)]
    a, b = psa.Modality(centres[t_a] + noise[0], t_a), psa.Modality(centres[t_b] + noise[1], t_b)
    learner = psa.Learner(psa.linear(14), members=1, folds=3, training=psa.Training(epochs=2))
    with pytest.warns(psa.AlignmentWarning):
        return psa.align(jax.random.key(0), psa.Unpaired(a, b, 14), a=learner, b=learner)


@pytest.mark.parametrize("control", [None, 3])
def test_score_maps_share_their_directions_and_colour_the_largest(alignment, control):
    axes = psa.plot.score_maps(alignment, control=control, titles=("rna", "protein"))
    assert [ax.get_title(loc="left") for ax in axes] == ["rna  (140 cells)", "protein  (91 cells)"]
    told = [text.get_text() for text in axes[1].get_legend().get_texts()]
    assert len(told) == (12 if control is None else 13)
    assert control is None or told[0] == "3"
    assert sum(len(points.get_offsets()) for points in axes[0].collections) == 140
    assert axes[0].get_xlim() == axes[1].get_xlim()


def test_feature_maps_are_in_one_scale(alignment):
    rng = np.random.default_rng(1)
    imputed, measured = rng.standard_normal((140, 2)), rng.standard_normal((91, 2))
    imputed[3] = np.nan
    axes = psa.plot.feature_maps(alignment, imputed, measured, ["CD4", "CD8"])
    assert axes.shape == (2, 2)
    above, below = (axes[row, 1].collections[0] for row in (0, 1))
    assert above.get_clim() == below.get_clim()
    assert len(above.get_offsets()) == 139
    assert axes[1, 1].get_title(loc="left") == "CD8, measured in b"


def test_evidence_and_partners_are_by_treatment(alignment):
    ax = psa.plot.evidence(alignment)
    assert len(ax.patches) == 13
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == sorted(widths, reverse=True)
    assert len(psa.plot.evidence(alignment, order=[2, 5]).patches) == 2
    ax = psa.plot.partners(alignment)
    assert len(ax.get_yticklabels()) == 13
    told = psa.plot.partners(alignment, order=[13, 2, 5]).get_yticklabels()
    assert [text.get_text() for text in told] == ["2  (7)", "5  (7)"]
    with pytest.raises(ValueError, match="alignment: expected one with a projection"):
        psa.plot.evidence(dataclasses.replace(alignment, projection=None))
