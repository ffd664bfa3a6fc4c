"Controls against loops, enumeration and scikit-learn."

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperclip_nb.dataset.encoders import nearest_questions
from hyperclip_nb.evaluation.controls import (
    chance,
    derangement,
    majority,
    mean_latent,
    nearest_latent,
    null_questions,
)
from hyperclip_nb.guidance import question_regression
from hyperclip_nb.guidance.question_regression import KernelRegression, QuestionRegression, rbf


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_derangement_moves_every_task_out_of_its_group(groups, seed):
    n, generator = len(groups), torch.Generator().manual_seed(seed)
    alone = derangement(n, generator)
    assert sorted(alone.tolist()) == list(range(n)) and (alone != torch.arange(n)).all()
    if 2 * max(groups.count(g) for g in groups) > n:
        with pytest.raises(ValueError, match="half"):
            derangement(n, generator, groups)
        return
    moved = derangement(n, generator, groups)
    assert sorted(moved.tolist()) == list(range(n))
    assert all(groups[i] != groups[j] for i, j in enumerate(moved.tolist()))


def test_derangement_is_seeded():
    draw = lambda seed: derangement(30, torch.Generator().manual_seed(seed)).tolist()
    assert draw(3) == draw(3) != draw(4)


@pytest.mark.parametrize("n", [0, 1])
def test_derangement_refuses_too_few(n):
    with pytest.raises(ValueError, match="at least 2"):
        derangement(n, torch.Generator())


def test_majority_equals_a_loop():
    g = torch.Generator().manual_seed(0)
    support, query = torch.randint(5, (40, 9), generator=g), torch.randint(6, (40, 7), generator=g)
    support_mask, query_mask = torch.rand(40, 9, generator=g) < 0.7, torch.rand(40, 7, generator=g) < 0.7
    support_mask[:, 0] = query_mask[:, 0] = True
    support, query = support.where(support_mask, -1), query.where(query_mask, -1)  # padding may be anything
    expected = []
    for s, q in zip(support.tolist(), query.tolist()):
        s, q = [a for a in s if a >= 0], [a for a in q if a >= 0]
        best = [a for a in set(s) if s.count(a) == max(map(s.count, s))]
        expected.append(sum(100 * q.count(a) / len(q) for a in best) / len(best))
    torch.testing.assert_close(
        majority(support, support_mask, query, query_mask), torch.tensor(expected, dtype=torch.float64)
    )


def test_chance():
    assert chance(torch.tensor([2, 4, 8])).tolist() == [50, 25, 12.5]


def test_nearest_equals_a_loop():
    g = torch.Generator().manual_seed(0)
    questions, train, latents = (
        torch.randn(9, 5, generator=g),
        torch.randn(20, 5, generator=g),
        torch.randn(20, 3, generator=g),
    )
    nearest = nearest_questions(questions, train, 2)
    for (index, second), q, z in zip(nearest, questions, nearest_latent(questions, train, latents)):
        similarity = [float(q @ t / q.norm() / t.norm()) for t in train]
        assert [index, second] == sorted(range(20), key=similarity.__getitem__, reverse=True)[:2]
        assert torch.equal(z, latents[index])
    with pytest.raises(ValueError, match="null question"):
        nearest_questions(null_questions(questions), train)


def test_mean_latent_over_views():
    latents = torch.arange(12.0).reshape(2, 3, 2)
    assert mean_latent(latents, 4).tolist() == [[5.0, 6.0]] * 4


def test_kernel_regression_equals_scikit_learn():
    from sklearn.kernel_ridge import KernelRidge

    g = torch.Generator().manual_seed(0)
    train, latents, test = (
        torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((60, 4), (60, 3), (20, 4))
    )
    ours = KernelRegression.fit(train, latents, bandwidth=0.7, ridge=0.3)
    other = KernelRidge(alpha=0.3, kernel="rbf", gamma=1 / (2 * ours.scale**2)).fit(train, latents - latents.mean(0))
    torch.testing.assert_close(ours(test), torch.from_numpy(other.predict(test)) + latents.mean(0))


@given(st.integers(0, 100), st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)
def test_kernel_regression_does_not_depend_on_the_unit_of_embeddings(seed, unit):
    g = torch.Generator().manual_seed(seed)
    train, latents = torch.randn(15, 3, generator=g), torch.randn(15, 2, generator=g)
    one, other = (KernelRegression.fit(k * train, latents)(k * train[:4] + k / 2) for k in (1, unit))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    assert one.dtype == torch.float32


def test_kernel_regression_finds_a_smooth_map_that_nearest_does_not():
    g = torch.Generator().manual_seed(0)
    train, test = (torch.randn(n, 2, generator=g) for n in (300, 100))
    truth = lambda e: torch.stack([e.sum(1), e[:, 0] * e[:, 1]], 1)
    error = lambda z: (z - truth(test)).square().mean()
    fitted = KernelRegression.fit(train, truth(train), bandwidth=0.5, ridge=1e-4)(test)
    assert error(fitted) < 0.1 * error(nearest_latent(test, train, truth(train)))


@pytest.mark.parametrize("landmarks", [2, 20, 59])
def test_landmarks_make_the_error_of_all_questions_small(landmarks):
    "The closed form against least squares with the penalty as more rows."
    g = torch.Generator().manual_seed(0)
    train, latents, test = (torch.randn(n, 3, generator=g, dtype=torch.float64) for n in (60, 60, 20))
    ours = KernelRegression.fit(train, latents, 0.7, 0.3, landmarks=landmarks)
    assert len(ours.train) == landmarks and all(any(torch.equal(row, e) for e in train) for row in ours.train)
    root = torch.linalg.cholesky(rbf(ours.train, ours.train, ours.scale) + 1e-10 * torch.eye(landmarks))
    rows = torch.cat([rbf(train, ours.train, ours.scale), 0.3**0.5 * root.mT])
    dual = torch.linalg.lstsq(rows, torch.cat([latents - latents.mean(0), torch.zeros(landmarks, 3)])).solution
    expected = latents.mean(0) + rbf(test, ours.train, ours.scale) @ dual
    torch.testing.assert_close(ours(test), expected, rtol=1e-5, atol=1e-5)


def test_nearly_all_landmarks_are_nearly_the_whole_regression_and_pieces_are_added_up(monkeypatch):
    g = torch.Generator().manual_seed(0)
    train, latents, test = (torch.randn(n, 2, generator=g) for n in (300, 300, 50))
    whole = KernelRegression.fit(train, latents, ridge=1.0)(test)
    near = KernelRegression.fit(train, latents, ridge=1.0, landmarks=299)(test)
    torch.testing.assert_close(near, whole, rtol=0.05, atol=0.05)
    monkeypatch.setattr(question_regression, "LANDMARKS", 7)
    torch.testing.assert_close(KernelRegression.fit(train, latents, ridge=1.0, landmarks=299)(test), near)
    monkeypatch.setattr(question_regression, "EXACT", 299)  # now 300 are too many
    assert len(KernelRegression.fit(train, latents).train) == 7


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ridge": 0}, "positive"),
        ({"bandwidth": -1}, "positive"),
        ({"landmarks": 1}, "from 2 to 3 questions, got 1"),
        ({"landmarks": 4}, "from 2 to 3 questions, got 4"),
    ],
)
def test_kernel_regression_refuses_options(options, message):
    with pytest.raises(ValueError, match=message):
        KernelRegression.fit(torch.eye(3), torch.eye(3), **options)


def test_kernel_regression_refuses_data():
    with pytest.raises(ValueError, match="as many"):
        KernelRegression.fit(torch.eye(3), torch.eye(4))
    with pytest.raises(ValueError, match="differ"):
        KernelRegression.fit(torch.ones(3, 2), torch.eye(3))


def test_question_regression_in_pieces_and_with_the_table_that_version_0_1_kept(monkeypatch):
    g = torch.Generator().manual_seed(0)
    questions, latents, cells = torch.randn(30, 4, generator=g), torch.randn(30, 3, generator=g), list("abcde") * 6
    model = QuestionRegression(questions, latents, cells, 2, 3).requires_grad_(False)
    whole, left_out = model(questions[:9]), model.left_out()
    same = model.cell[:, None] == model.cell
    torch.testing.assert_close(left_out, model.shares(questions, same) @ latents)
    monkeypatch.setattr(QuestionRegression, "together", 4)
    torch.testing.assert_close(model(questions[:9]), whole)
    torch.testing.assert_close(model.left_out(), left_out)
    assert "cell" not in model.state_dict()
    QuestionRegression(questions, latents, cells, 2, 3).load_state_dict({**model.state_dict(), "same": same})
