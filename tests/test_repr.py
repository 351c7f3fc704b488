"""Objects introduce themselves: in a few lines, by name, while tracing too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import psa_jax as psa

NAMES = np.array(["DMSO", "drug A", "drug B", "only b"])


@pytest.fixture(scope="module")
def objects():
    rng = np.random.default_rng(0)
    t_a, t_b = np.append(rng.integers(0, 3, 27), [0, 1, 2]), np.append(rng.integers(0, 2, 22), [0, 1, 3])
    x_a, x_b = (rng.normal(size=(t.size, 3)).astype("float32") + 3 * (t[:, None] % 2) for t in (t_a, t_b))
    data = psa.Unpaired.from_labels(x_a.astype("float32"), NAMES[t_a], x_b.astype("float32"), NAMES[t_b])
    quick = psa.Learner(psa.linear(4), training=psa.Training(epochs=2), folds=3, members=2)
    with pytest.warns(psa.AlignmentWarning, match="treatments drug B, only b: "):
        alignment = psa.align(jax.random.key(0), data, a=quick, b=quick)
    scores = jnp.concatenate([alignment.scores_a, jnp.sin(alignment.scores_a)], 1)
    others = jnp.concatenate([alignment.scores_b, jnp.sin(alignment.scores_b)], 1)
    sweep = psa.select_eps(
        jax.random.key(1), scores, others, alignment.groups, np.geomspace(0.05, 1, 20), repeats=1, draws=1
    )
    w = jnp.full(3, 1 / 3)
    return {
        "Unpaired": data,
        "Modality": data.a,
        "Groups": alignment.groups,
        "Coupling": psa.sinkhorn(data.a.x[:3], data.a.x[3:6], w, w),
        "Blocked": alignment.coupling,
        "Fitted": alignment.fitted_a,
        "Alignment": alignment,
        "EpsSweep": sweep,
        "Info": alignment.coupling.info,
        "Scorer": alignment.scorer_a,
        "Calibration": alignment.calibration_a,
        "shrunk": psa.shrink(alignment.coupling, 0.5),
        "Truth": psa.Truth(jnp.arange(3)),
    }


KINDS = ("Unpaired", "Modality", "Groups", "Coupling", "Blocked", "Fitted", "Alignment", "EpsSweep", "Info", "Scorer")
KINDS += ("Calibration", "shrunk", "Truth")


@pytest.mark.parametrize("kind", KINDS)
def test_twelve_lines_at_most_also_while_tracing_and_of_shapes(objects, kind):
    value = objects[kind]
    seen = [repr(value), str(value)]
    jax.eval_shape(lambda tree: seen.append(repr(tree)) or 0, value)
    seen.append(repr(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), value)))
    for text in seen:
        lines = text.split("\n")
        assert len(lines) <= 12, text
        assert max(map(len, lines)) <= 200, text
        assert "Tracer" not in text.replace("JitTracer", "")


def test_an_alignment_tells_what_was_matched_by_name(objects):
    text = objects["Alignment"].summary()
    assert text == repr(objects["Alignment"]) == str(objects["Alignment"])
    for part in (
        "30 samples of a and 25 of b in 4 treatments",
        "entropic transport (euclidean)",
        "2 of 2 matched treatments converged",
        "only in a, not matched: drug B",
        "only in b, not matched: only b",
        "3 runs",
        "held-out accuracy",
    ):
        assert part in text
    table = objects["Alignment"]._repr_html_()
    assert table.startswith("<table>")
    assert table.count("<tr>") == len(text.split("\n")) - 1


def test_others_tell_sizes_and_names(objects):
    assert "DMSO (" in repr(objects["Unpaired"])
    assert "4 treatments, 2 of them in both modalities" in repr(objects["Unpaired"])
    assert repr(objects["Modality"]) == "Modality of 30 samples of 3 features, float32"
    assert "converged" in repr(objects["Coupling"])
    assert "3 x 3" in repr(objects["Coupling"])
    assert "shrunk entropic transport" in repr(objects["shrunk"])
    assert "3 runs" in repr(objects["Fitted"])
    assert "20 eps" in repr(objects["EpsSweep"])


def test_settings_show_what_differs_from_the_default():
    assert repr(psa.Learner()) == "Learner()"
    assert repr(psa.Learner(psa.mlp((4,), 2), members=3)) == "Learner(model=Model(Mlp(...)), members=3)"
    assert repr(psa.Training(epochs=3)) == "Training(epochs=3)"


def test_values_that_are_no_alignment_still_show():
    many = psa.Unpaired(
        psa.Modality(jnp.ones((4, 2, 2, 1)), jnp.arange(4)), psa.Modality(jnp.ones((4, 1)), jnp.arange(4)), 30
    )
    text = repr(many)
    assert "shape [2, 2, 1]" in text
    assert "and 22 more" in text
