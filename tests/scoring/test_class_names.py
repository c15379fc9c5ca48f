"""Tests of matching classes by name: order changes nothing, and what does not fit is named."""

from pathlib import Path

import pytest

from vlcp_ray.scoring.class_names import JobClasses
from vlcp_ray.settings import ConfigError

ANIMALS = JobClasses(("n01440764", "n02123045", "sea_otter"), ("tench, Tinca tinca", "tabby, tabby cat", "sea otter"))


@pytest.mark.parametrize(
    "found",
    [
        ["sea otter", "n01440764", "tabby, tabby cat"],
        ["Sea_Otter", "tench", "tabby"],
        ["sea-otter", "Tench", "tabby cat"],
    ],
)
def test_match_finds_classes_by_key_name_or_one_of_the_names(found: list[str]) -> None:
    assert ANIMALS.match(found, "set") == [2, 0, 1]


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (["tench", "tabby", "sea oter"], "the job has no class 'sea oter'; did you mean 'sea otter'?"),
        (["zebra", "yak"], "the job has no class 'zebra' (and 1 more); it has tench, Tinca tinca, tabby"),
        (["tench", "n01440764"], "'tench' and 'n01440764' are both the class 'tench, Tinca tinca'"),
        (["0", "1", "2"], "the job has no class '0' (and 2 more); give --classes"),
    ],
)
def test_match_of_other_classes_is_refused(found: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        ANIMALS.match(found, "set")
    assert str(error.value).startswith("set: ")
    assert sentence in str(error.value)


def test_refusals_list_the_first_classes_and_say_that_there_are_more() -> None:
    names = tuple("abcdefghij")
    with pytest.raises(ConfigError, match=r"it has a, b, c, d, e, f, g, h, \.\.\.$"):
        JobClasses(names, names).match(["zebra"], "set")
    with pytest.raises(ConfigError, match=r"the job's labels \(0 a, 1 b, 2 c, 3 d, 4 e, 5 f, 6 g, 7 h, \.\.\.\)"):
        JobClasses(names, names).of_numbers("", "set")
    with pytest.raises(
        ConfigError, match=r"the job's labels \(0 tench, Tinca tinca, 1 tabby, tabby cat, 2 sea otter\)"
    ):
        ANIMALS.of_numbers("", "set")


def test_check_complete_names_the_class_without_images() -> None:
    ANIMALS.check_complete([1, 2, 1], "set")
    with pytest.raises(ConfigError, match="no image of 'tabby, tabby cat' and 1 more of the job's 3 classes"):
        ANIMALS.check_complete([1, 0, 0], "set")


def test_of_numbers_needs_a_list(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("sea otter\nn02123045\nn01440764\n")
    assert ANIMALS.of_numbers(str(tmp_path / "classes.txt"), "set") == [2, 1, 0]
    assert ANIMALS.of_numbers("job", "set") == [0, 1, 2]
    with pytest.raises(ConfigError, match="nothing says which class a number is; give --classes with a list"):
        ANIMALS.of_numbers("", "set")
    with pytest.raises(ConfigError, match="none of imagenette"):
        ANIMALS.of_numbers("nowhere.txt", "set")
    with pytest.raises(ConfigError, match="--classes imagewoof: the job has no class"):
        ANIMALS.of_numbers("imagewoof", "set")
