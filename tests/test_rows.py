"Ids of methods: what is written is read back, one spelling for each row, and the order of a table."

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperclip_nb.evaluation.rows import CONTROLS, FEW_SHOT_ROWS, FIXED, NAMES, ROWS, VARIANTS, Method, check_rows

GUIDED = ("hyperclip", "hyperldm")
EITHER = ("mean_latent", "nearest_latent", "question_regression", "mlp_regression", "regression_gaussian")
EITHER += ("regression_draws", "few_shot")


@st.composite
def methods(draw) -> Method:
    name = draw(st.sampled_from([*NAMES]))
    with_generator = name in (*GUIDED, *EITHER, "latent_regression")
    generator = draw(st.sampled_from(["hnet", "hvae"])) if with_generator else None
    gamma = draw(st.integers(0, 400)) / 100 if name == "hyperldm" else None
    usual = Method.parse(name).generator if name in (*EITHER, "latent_regression") else generator
    variants = ["", *VARIANTS, "mine"] if usual == generator else [""]  # an id has room for one
    method = Method(
        name=name,
        generator=generator,
        gamma=gamma,
        variant=draw(st.sampled_from(variants)),
        samples=draw(st.integers(1, 50)),
        control=draw(st.sampled_from(["", *CONTROLS])),
    )
    if not method.sees_labels:
        return method
    shots = draw(st.sampled_from(["", "0", "1", "20", "5_as_they_come"]))
    return replace(method, shots=shots, frequencies=draw(st.booleans()))


@given(methods())
def test_what_is_written_is_read_back(method):
    again = Method.parse(str(method))
    assert again == method and again.place == method.place and again.label == method.label
    assert again.own == Method.parse(str(method).split("+")[0])


@given(st.text("abcdehlmnrtuv_g1.5~@+0/", max_size=30) | st.from_regex(r"[a-z_.~@+/0-9]{0,40}", fullmatch=True))
def test_a_text_is_an_id_in_one_spelling_or_refused(text):
    try:
        assert str(Method.parse(text)) == text
    except ValueError as error:
        assert ("method id" in str(error) or "sees no labelled picture" in str(error)) and repr(text) in str(error)


@given(methods(), methods())
def test_labels_tell_methods_apart(a, b):
    assert (a.label == b.label) == (a == b)


def test_labels():
    label = lambda id: Method.parse(id).label
    ids = {*ROWS, *FEW_SHOT_ROWS, *FIXED}
    assert len({label(id) for id in ids}) == len(ids)
    assert label("hnet_hyperldm_g0") == "HNet + HyperLDM γ = 0"
    assert label("hnet_hyperldm_g1.5+null") == "HNet + HyperLDM γ = 1.5, no question"
    assert label("cond_multitask~clip@10") == "Conditional multitask, CLIP's own embedding, 10 samples averaged"
    assert label("cond_multitask~tokens") == "Conditional multitask, tokens"
    assert label("few_shot~hvae") == "Few-shot adaptation on the support set, HVAE"
    some = "few_shot~multitask~frequencies/20_as_they_come"
    assert label(some).endswith("multitask's weights, with its answers' frequencies, 20 pictures as they come")
    for wrong in ("", "Chance", "chance+", "chance@ten", "+shuffled", "multitask shuffled", "nobody", "chance+nul"):
        with pytest.raises(ValueError, match="expected"):
            label(wrong)


def test_the_order_of_a_table():
    place = lambda id: Method.parse(id).place
    assert sorted(NAMES, key=place) == list(NAMES)
    without = [id for id in (*ROWS, *FIXED) if "~pictures" not in id]
    seeing = {*ROWS, *FEW_SHOT_ROWS} - {*without}
    assert max(map(place, without)) < min(map(place, seeing))  # who saw pictures comes last
    block = [
        "hnet_hyperldm_g1.5",
        "hnet_hyperldm_g1.5+null",
        "hnet_hyperldm_g1.5+shuffled",
        "hnet_hyperldm_g1.5@10",
        "hnet_hyperldm_g1.5~embedding@10",
        "hnet_hyperldm_g4",
        "hvae_hyperldm_g0.5",
        "mean_latent",
        "mean_latent~hnet",
        "one_of_mine",
    ]
    for some in itertools.permutations(block, 2):
        assert sorted(some, key=place) == sorted(some, key=block.index)


def test_rows_are_ids_and_others_are_refused():
    for id in (*ROWS, *FEW_SHOT_ROWS):
        method = Method.parse(id)
        assert str(method) == id and not method.control and method.sees_labels == (id in FEW_SHOT_ROWS)
        assert method.sees_pictures == (method.sees_labels or "~pictures" in id)
    check_rows((*ROWS, *FEW_SHOT_ROWS))
    with pytest.raises(ValueError, match="got hvae_hyperldm_g7"):
        check_rows(["multitask", "hvae_hyperldm_g7"])


def test_only_a_row_that_sees_labels_has_a_number_of_them():
    for id in (
        "multitask/5",
        "cond_multitask~pictures/5",
        "hvae_hyperldm_g1~frequencies",
        "question_regression/5_as_they_come",
    ):
        with pytest.raises(ValueError, match="sees no labelled picture"):
            Method.parse(id)
    assert {id for id in FEW_SHOT_ROWS if not Method.parse(id).reads_questions} == {
        "few_shot",
        "few_shot~hvae",
        "few_shot~multitask",
        "few_shot~mnet_maml",
    }
