"""The protocol of `python -m benchmarks.peers`, with scripts of our own in the place of other people's packages."""

import sys

import numpy as np
import pytest

import psa_jax as psa
from benchmarks import peer_runs, peers, peers_report
from benchmarks.cuts import paired

SCRIPTS = peer_runs.SCRIPTS
FAKE = f"""
import sys
sys.path.insert(0, {str(SCRIPTS)!r})
import numpy as np
from problem import main

def solve(problem, variant, seed):
    rng = np.random.default_rng(seed)
    assert variant == "a variant" and (problem.links == [[0, 1]]).all()
    def solve(r, c):
        axes = [0, 1, 0][: 2 + int(problem.t_a[r[0]]) % 2]
        return rng.random((r.size, c.size)), (problem.x_a[r][:, axes], problem.x_b[c][:, axes])

    answer = problem.by_block(solve, 3)
    answer["plan"][0] = 0
    return answer

main(solve)
"""


@pytest.fixture(scope="module")
def cut():
    rng = np.random.default_rng(0)
    t = np.r_[np.repeat([0, 1, 2], 9), 3]
    return paired(rng.normal(size=(28, 3)), rng.normal(size=(28, 2)), t, seed=0)


@pytest.fixture(scope="module")
def problem(cut):
    a, b = cut.aligned.a, cut.aligned.b
    sides = {"x_a": a.x, "wide_a": a.x, "fit_wide_a": a.x, "x_b": b.x, "wide_b": b.x, "fit_wide_b": b.x}
    return sides | {"t_a": a.t, "t_b": b.t, "fit_t_a": a.t, "fit_t_b": b.t, "links": [[0, 1]], "u": a.x, "v": b.x}


def script(tmp_path, text):
    path = tmp_path / "script.py"
    path.write_text(text)
    return path


def ask(path, problem, limit=60):
    return peer_runs.ask(sys.executable, path, "a variant", 5, problem, limit)


def brute(law, cut):
    """The three figures, by loops."""

    def closer(one, than):
        return 0.5 if abs(one - than) < 1e-6 else float(one < than)

    t, y = np.asarray(cut.aligned.a.t), np.asarray(cut.y_b, float)
    t_b, n = np.asarray(cut.aligned.b.t), len(np.asarray(cut.aligned.a.t))
    guess, true = law @ y, y[cut.pair]
    lift, ranks, wrong, blind = [], [], 0.0, 0.0
    for i in range(n):
        own = y[t_b == t[i]]
        lift.append(law[i, cut.pair[i]] * len(own))
        wrong, blind = wrong + ((guess[i] - true[i]) ** 2).sum(), blind + ((own.mean(0) - true[i]) ** 2).sum()
        others = [j for j in range(n) if j != i and t[j] == t[i]]
        if others:
            d = ((guess[i] - true[i]) ** 2).sum()
            away = [closer(((guess[i] - true[j]) ** 2).sum(), d) for j in others]
            back = [closer(((guess[j] - true[i]) ** 2).sum(), d) for j in others]
            ranks.append((np.mean(away) + np.mean(back)) / 2)
    return np.mean(lift), np.mean(ranks), wrong / blind


def test_a_script_is_asked_and_its_answer_measured(tmp_path, cut, problem):
    ours = np.ones(2**27)  # a GiB, which is not the script's
    answer, run = ask(script(tmp_path, FAKE), problem)
    assert run.error == ""
    assert 0 < run.seconds < 60
    assert 0.01 < run.memory < ours.nbytes / 2**30
    t_a, t_b = np.asarray(cut.aligned.a.t), np.asarray(cut.aligned.b.t)
    law, empty = peers.law_of(answer["plan"], t_a, t_b)
    assert np.allclose(law.sum(1), 1)
    assert (law[t_a[:, None] != t_b[None]] == 0).all()
    assert set(np.flatnonzero(empty)) == {0, *np.flatnonzero(t_a == 3)}  # emptied, and too small for the script
    assert np.allclose(law[0, t_b == t_a[0]], 1 / 9)
    found = peers.figures(answer["plan"], cut)
    assert np.allclose([found["lift"], found["FOSCTTM"], found["error"]], brute(law, cut), atol=1e-5)
    assert found["without mass"] == empty.mean()


def test_an_embedding_is_matched_by_us(tmp_path, cut, problem):
    answer, _ = ask(script(tmp_path, FAKE), problem)
    t_a, x_a = np.asarray(cut.aligned.a.t), np.asarray(cut.aligned.a.x)
    kept = np.stack([t_a != 3, t_a != 3, t_a == 1], axis=1)  # treatments may have embeddings of other widths
    np.testing.assert_allclose(answer["z_a"], np.where(kept, x_a[:, [0, 1, 0]], 0), rtol=1e-6)
    groups = peers.groups_of(cut)
    masses = dict(peers.matched_by_us(answer["z_a"], answer["z_b"], groups))
    for told, matcher in peers.OURS.items():
        mass = np.asarray(psa.blockwise(matcher)(answer["z_a"], answer["z_b"], groups).dense())
        assert np.array_equal(masses[told], mass)
        law, _ = peers.law_of(mass, cut.aligned.a.t, cut.aligned.b.t)
        found = peers.figures(mass, cut)
        assert np.allclose([found["lift"], found["FOSCTTM"], found["error"]], brute(law, cut), atol=1e-5)


def test_what_is_known_without_matching(cut):
    n, m = peers.groups_of(cut).shape
    assert peers.figures(np.zeros((n, m)), cut) == pytest.approx(
        {"lift": 1, "FOSCTTM": 0.5, "error": 1, "without mass": 1}
    )
    size = np.mean(np.bincount(cut.aligned.b.t)[cut.aligned.a.t])
    assert peers.figures(np.eye(m)[cut.pair], cut) == pytest.approx(
        {"lift": size, "FOSCTTM": 0, "error": 0, "without mass": 0}
    )


def test_what_is_not_a_number_is_no_mass():
    law, empty = peers.law_of([[np.nan, 2.0, 1.0], [-1.0, np.nan, 3.0]], [0, 0], [0, 0, 1])
    assert np.array_equal(law, [[0, 1, 0], [0.5, 0.5, 0]])
    assert empty.tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("raise ValueError('no epsilon is small enough')", "ValueError: no epsilon is small enough"),
        ("open('/a/folder/of mine/x')", "No such file or directory: 'of mine/x'"),
        ("import sys; sys.exit('see https://example.org/x for more')", "see  for more"),
        ("import sys; sys.exit(3)", "ended with code 3"),
        ("pass", "wrote no answer"),
    ],
)
def test_a_failure_is_told_by_its_last_line(tmp_path, problem, text, error):
    answer, run = ask(script(tmp_path, text), problem)
    assert answer == {}
    assert error in run.error


def test_time_is_limited(tmp_path, problem):
    text = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    answer, run = ask(script(tmp_path, text), problem, limit=0.5)
    assert answer == {}
    assert run.error == "over its limit of 0.5 s"
    assert run.seconds < 10


def test_time_of_a_core_is_limited(tmp_path, problem):
    path = script(tmp_path, "while True: pass")
    answer, run = peer_runs.ask(sys.executable, path, "a variant", 5, problem, limit=60, core=1)
    assert answer == {}
    assert run.error == "over its limit of 1 s of one core"
    assert run.core < 3


@pytest.mark.slow  # makes an environment
def test_what_does_not_install_is_told_once(monkeypatch, tmp_path):
    monkeypatch.setattr(peer_runs, "ENVIRONMENTS", tmp_path / "environments")
    peer = peer_runs.Peer("broken", "", "", script(tmp_path, "pass"), packages=("not a requirement",))
    told = peer_runs.install(peer)
    assert told["error"].startswith("ERROR: Invalid requirement")
    assert peer_runs.install(peer) == told


def test_a_peer_that_is_not_installed_has_a_row(monkeypatch, cut, problem):
    monkeypatch.setattr(peers, "install", lambda peer: {"error": "ERROR: no such package"})
    (row,) = peers.rows_of(peer_runs.PEERS[0], "x", "made up", 0, cut, problem)
    assert row["error of run"] == "not installed: ERROR: no such package"
    assert "lift" not in row


def test_results_of_a_run_take_the_place_of_its_earlier_ones(monkeypatch, tmp_path):
    for module in (peers, peers_report):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "peers.json")
    monkeypatch.setattr(peers, "report", lambda: None)
    row = {"data": "x", "seed": 0, "peer": "p", "variant": "v", "match": "its own"}
    peers.keep([row | {"lift": 1}, row | {"match": "our snn", "lift": 2}], [])
    peers.keep([row | {"seed": 1, "lift": 3}], [])
    peers.keep([row | {"lift": 4}], [])
    rows = peers.json.loads((tmp_path / "peers.json").read_text())["rows"]
    assert [(row["seed"], row["match"], row["lift"]) for row in rows] == [(0, "its own", 4), (1, "its own", 3)]


def test_the_page_is_that_of_the_results():
    from benchmarks.peers_report import PAGE, TABLES
    from benchmarks.tables import filled

    text = PAGE.read_text()
    assert filled(text, TABLES) == text, "run python -m benchmarks.peers_report"
