"""Wrong calls of everything public: each ends where it is made, in one line with argument, value and remedy."""

import inspect
import re

import pytest
from wrong_calls import calls, public, words_of
from wrong_values import FOLDER, ROWS

EVERYTHING = public()


def what_is_wrong(short, place, function, args, keywords):
    """Of the error of a wrong call; None if it is as it must be."""
    try:
        function(*args, **keywords)
    except (TypeError, ValueError) as error:
        said = str(error)
        head, *lines = said.split("\n")  # one line; or a heading, and a line for each leaf or field
        formed = not lines or (head.endswith(":") and all(re.match(r"  \S", line) for line in lines))
        return None if formed and len(said) <= 400 and (place in said or short in said) else f"{type(error).__name__}: {said}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_wrong_type_in_each_place_is_named_at_the_call(name):
    function, short = EVERYTHING[name], name.rpartition(".")[2]
    found = [(place, wrong, what_is_wrong(short, place, function, *given)) for place, wrong, *given in calls(function)]
    problems = [f"{place}={wrong!r}: {said}" for place, wrong, said in found if said]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", [name for name, value in EVERYTHING.items() if words_of(value)])
def test_a_word_that_is_none_of_the_options_is_refused(name):
    for place, args, keywords in words_of(EVERYTHING[name]):
        said = what_is_wrong(name.rpartition(".")[2], place, EVERYTHING[name], args, keywords)
        assert said is None or said.startswith("ValueError"), f"{place}: {said}"


def test_there_are_thousands_of_wrong_calls():
    assert len(ROWS) >= 150
    assert len({name for name, *_ in ROWS}) == len(ROWS)
    assert sum(len(calls(value)) for value in EVERYTHING.values()) > 1500


@pytest.mark.parametrize(("call", "says"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_wrong_value_is_named_with_what_to_do(call, says):
    with pytest.raises((TypeError, ValueError, OSError)) as caught:
        call()
    said = str(caught.value).replace(str(FOLDER), "")
    head, *lines = said.split("\n")
    assert says in said
    # One line; or a heading, and a line for each leaf or field.
    assert not lines or (head.endswith(":") and all(re.match(r"  \S", line) for line in lines)), said
    assert max(map(len, [head, *lines])) < 500


def test_every_public_function_is_checked():
    """Those that say themselves what they were given wrong are named here."""
    own = {"chain", "quantize", "trace", "matches", "named"}
    found = {name for name, value in EVERYTHING.items() if inspect.isfunction(value) and not hasattr(value, "__wrapped__")}
    assert {name.rpartition(".")[2] for name in found} <= own
