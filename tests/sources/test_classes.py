"""Tests of classes: keys, names, label numbers, packaged lists, and errors with their fix."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.image_sets import SHARED
from tests.s3 import Proxy
from vlcp_ray.settings import ConfigError
from vlcp_ray.sources.classes import Glossary, expand, load_glossary, only_numbers, resolve
from vlcp_ray.store.files import write
from vlcp_ray.store.io import AccessError, open_uri

KNOWN = load_glossary("")


@pytest.mark.parametrize(
    ("name", "n_classes"), [("imagenette", 10), ("imagewoof", 10), ("imageidc", 10), ("imagenet100", 100)]
)
def test_expand_packaged_list_returns_distinct_imagenet_classes(name: str, n_classes: int) -> None:
    keys = expand([name], KNOWN)
    assert len(set(keys)) == len(keys) == n_classes
    assert set(keys) <= set(expand(["imagenet1k"], KNOWN))


def test_packaged_lists_equal_the_published_lists() -> None:
    lists = SHARED / "classes"
    if not lists.exists():
        pytest.skip(f"{lists} is not there")
    assert expand(["imagenet100"], KNOWN) == (lists / "imagenet100.txt").read_text().split()
    assert expand(["imageidc"], KNOWN) == expand(["imagenet100"], KNOWN)[:10]
    lines = (lists / "imagenet1k.tsv").read_text(encoding="utf-8").splitlines()
    assert {key: KNOWN.names[key] for key in KNOWN.names} == dict(line.split("\t") for line in lines) | {
        "n03126707": "construction crane"  # crane2 in the list, to tell it from the bird
    }
    tiny = dict(line.split("\t") for line in (lists / "tinyimagenet.tsv").read_text(encoding="utf-8").splitlines())
    different = {key for key, name in tiny.items() if KNOWN.names[key] != name}
    assert different == {"n03126707"}  # `crane2`: `crane` is the bird


@given(st.permutations(["n01440764", "n02102040", "cat", "airplane"]))
def test_resolve_any_order_of_available_classes_sorts_by_key(available: list[str]) -> None:
    classes = resolve(available, (), KNOWN)
    assert classes.keys == ("airplane", "cat", "n01440764", "n02102040")
    assert classes.names[2:] == ("tench, Tinca tinca", "English springer, English springer spaniel")


def test_resolve_by_name_equals_resolve_by_wnid() -> None:
    assert KNOWN.canonical("tench, Tinca tinca") == KNOWN.canonical("n01440764") == "n01440764"
    by_name = resolve(["n01440764", "n02102040"], ["tench, Tinca tinca"], KNOWN)
    assert by_name == resolve(["n01440764", "n02102040"], ["n01440764"], KNOWN)


def test_resolve_keeps_the_order_of_wanted_classes() -> None:
    assert resolve(["a", "b", "c"], ["c", "a"], KNOWN).keys == ("c", "a")
    assert resolve(["a", "b", "c"], ["c", "a"], KNOWN).summary(3) == "2 of its 3 classes"


@pytest.mark.parametrize(
    ("available", "wanted", "message"),
    [
        (["cat", "dog"], ["cats"], "no 'cats'; did you mean 'cat'"),
        (["cat", "dog"], ["imagenette"], "no 'n01440764' and 9 more of the wanted classes; it has cat, dog"),
        (["cat", "dog"], ["cat", "cat"], "'cat' is given twice"),
        (
            ["n99999999", "n01440764"],
            [],
            r"n99999999 .*is not a class of ImageNet-1K, so its name is unknown; give a file",
        ),
    ],
)
def test_resolve_impossible_classes_names_the_problem(available: list[str], wanted: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(available, wanted, KNOWN)


def test_resolve_two_classes_of_one_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="two classes have the name 'crane'"):
        resolve(["bird", "machine"], (), Glossary({"bird": "crane", "machine": "crane"}))


def test_glossary_of_file_has_its_numbers_and_names(tmp_path: Path) -> None:
    file = tmp_path / "classes.tsv"
    file.write_text("n99999999\ta new thing\r\nn01440764\ncat\n\n", encoding="utf-8")
    known = load_glossary(str(file))
    assert [known.key_of(number) for number in (-1, 0, 2, 3)] == [None, "n99999999", "cat", None]
    assert [known.names[key] for key in known.numbers] == ["a new thing", "tench, Tinca tinca", "cat"]


def test_glossary_of_unusable_file_names_the_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is none of imagenette, .*, and not a file that can be read"):
        load_glossary(str(tmp_path / "missing.tsv"))
    with pytest.raises(ConfigError, match=r"cannot read .*: it is a folder, not a file; name a file"):
        load_glossary(str(tmp_path))
    (tmp_path / "twice.tsv").write_text("cat\ndog\ncat\n")
    with pytest.raises(ConfigError, match="has 'cat' twice"):
        load_glossary(str(tmp_path / "twice.tsv"))


def test_glossary_that_s3_refuses_names_the_fix(s3_proxy: Proxy, tmp_path: Path) -> None:
    uri = s3_proxy.uri(f"classes{tmp_path}/list.tsv")
    with pytest.raises(ConfigError, match=r"is none of imagenette, .*, and not a file that can be read"):
        load_glossary(uri)
    write(*open_uri(uri, "ingest.class_list"), b"cat\ndog\n")
    assert load_glossary(uri).numbers == ("cat", "dog")
    s3_proxy.set_faults(deny=[400, "ExpiredToken", "old"])
    with pytest.raises(AccessError, match=r"read ingest\.class_list .*ExpiredToken: old; .*renew the credentials"):
        load_glossary(uri)


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["001.Black_footed_Albatross", "2-dog", "03_fire_truck"], ("Black footed Albatross", "fire truck", "dog")),
        (["0 cat", "1 dog"], ("cat", "dog")),
        (["1 cat", "3 dog"], ("1 cat", "3 dog")),
        (["10_euro", "20_euro"], ("10_euro", "20_euro")),
        (["1 euro", "2 euro"], ("1 euro", "2 euro")),
        (["1 cat", "dog"], ("1 cat", "dog")),
    ],
)
def test_resolve_names_without_the_numbers_that_count_the_keys(keys: list[str], names: tuple[str, ...]) -> None:
    assert resolve(keys, (), load_glossary("")).names == names


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("tench", "n01440764"),
        ("Tinca Tinca", "n01440764"),
        ("tench, Tinca tinca", "n01440764"),
        ("crane", "n02012849"),
        ("crane2", "n03126707"),
        ("construction crane", "n03126707"),
        ("missile", "n03773504"),  # the whole name of one class, and one of the names of another
        ("my own class", "my own class"),
    ],
)
def test_glossary_finds_a_class_by_each_of_its_names(name: str, key: str) -> None:
    assert load_glossary("").find(name) == key


def test_glossary_refuses_a_name_of_several_classes() -> None:
    with pytest.raises(ConfigError, match=r"'panda' is a name of several classes; give n\d+ \(.*\) or n\d+ \("):
        load_glossary("").find("panda")


def test_resolve_takes_wanted_classes_by_synonyms_and_folders_by_their_whole_name() -> None:
    known = load_glossary("")
    assert resolve(["n01440764", "n02012849"], ["tench"], known).keys == ("n01440764",)
    assert resolve(["n01440764", "tench"], ["tench"], known).keys == ("tench",)
    assert known.canonical("tench") == "tench"  # a folder of a set that may be another
    assert known.canonical("crane2") == "n03126707"
    assert resolve(["n03126707"], (), known).names == ("construction crane",)


def test_only_numbers_warns_of_names_that_prompts_cannot_use() -> None:
    assert only_numbers(["cat", "4x4"]) == ""
    assert only_numbers(["7", "cat", "10"]).startswith('2 class names are numbers, so that prompts would say "the 7 in')


@pytest.mark.parametrize(
    ("name", "is_exact"), [("n01440764", True), ("crane", True), ("my own", True), ("tench", False), ("panda", False)]
)
def test_glossary_knows_which_names_mean_one_key(name: str, is_exact: bool) -> None:
    assert load_glossary("").is_exact(name) == is_exact


def test_canonical_of_many_unknown_names_is_fast() -> None:
    """A list of val images has a name for each: 100,000 took 7 s while each built the table of names again."""
    known = load_glossary("")
    assert known._keys_by_name is known._keys_by_name
    assert [known.canonical(f"class {i}") for i in range(100_000)][-1] == "class 99999"
