"""Configuration: all mistakes at once, each with its path."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from pipeline.config import Config, validate
from pipeline.errors import ConfigError


class Cat(Config):
    kind: Literal["cat"]
    lives: int = Field(gt=0)


class Dog(Config):
    kind: Literal["dog"]
    tricks: tuple[str, ...]


class House(Config):
    name: str
    pets: dict[str, Annotated[Cat | Dog, Field(discriminator="kind")]]
    size: int = Field(gt=0, le=10)

    @model_validator(mode="after")
    def _check(self):
        if self.name == "empty" and self.pets:
            raise ValueError("an empty house has no pets")
        return self


GOOD = {"name": "home", "size": 3, "pets": {"tom": {"kind": "cat", "lives": 9}}}


def explain(values) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(House, values)
    return str(caught.value)


def test_good_values_become_the_model():
    assert validate(House, GOOD) == House(name="home", size=3, pets={"tom": Cat(kind="cat", lives=9)})


def test_every_mistake_is_told_at_once_with_its_path():
    message = explain({"size": 0, "colour": "red", "pets": {"tom": {"kind": "cat", "lives": "many", "tail": 1}}})
    lines = message.splitlines()
    assert lines[0] == "the configuration has 5 mistakes:"
    assert len(lines) == 6
    assert "  name: is missing; set it in a file of conf/ or on the command line" in lines
    assert "  colour: unknown key; remove it or correct its spelling" in lines
    assert "  pets.tom.tail: unknown key; remove it or correct its spelling" in lines
    assert any(line.startswith("  size: ") and "greater than 0" in line and "given: 0" in line for line in lines)
    assert any(line.startswith("  pets.tom.lives: ") and "given: 'many'" in line for line in lines)


def test_one_mistake_is_one():
    assert explain({**GOOD, "size": 11}).splitlines()[0] == "the configuration has 1 mistake:"


def test_a_mistake_of_the_whole_says_so():
    assert "(whole configuration): Value error, an empty house has no pets" in explain({**GOOD, "name": "empty"})


def test_a_kind_that_does_not_exist_is_told_with_those_that_do():
    message = explain({**GOOD, "pets": {"nemo": {"kind": "fish"}}})
    assert "pets.nemo" in message
    assert "'cat', 'dog'" in message


def test_a_model_cannot_be_changed():
    house = validate(House, GOOD)
    with pytest.raises(ValidationError, match="frozen"):
        house.size = 4
