"""The JSON schema of experiment files, as editors show it to who writes one."""

from collections import Counter

from snrkit.experiment.experiment import file_schema


def classes():
    """(name, schema) of every class of a file, and of the file itself."""
    schema = file_schema()
    return {"Experiment": schema, **schema["$defs"]}


def keys():
    """(class, key, schema) of every key that a file may have, but for `kind`, which names its class."""
    for name, found in classes().items():
        for key, said in found.get("properties", {}).items():
            if key != "kind":
                yield name, key, said


def plain(text):
    """The words of a text, without case, underscores and stops."""
    return text.lower().replace("_", " ").replace(".", " ").split()


def test_every_class_says_what_it_is():
    """By its docstring."""
    assert not [name for name, found in classes().items() if not found.get("description")]


def test_every_key_says_what_it_is():
    """In two words at least that are not its title again."""
    assert len(list(keys())) > 500
    for name, key, said in keys():
        words = plain(said.get("description", ""))
        assert len(words) >= 2, f"{name}.{key}"
        assert words not in (plain(said.get("title", "")), plain(key)), f"{name}.{key}"


def test_descriptions_are_phrases():
    """Of one line, without a stop at the end."""
    for name, key, said in keys():
        text = said["description"]
        assert text == " ".join(text.split()), f"{name}.{key}"
        assert not text.endswith("."), f"{name}.{key}"


def test_no_two_keys_of_a_class_are_described_alike():
    """What tells them apart is said."""
    for name, found in classes().items():
        said = Counter(each.get("description") for key, each in found.get("properties", {}).items() if key != "kind")
        assert not [text for text, times in said.items() if times > 1], name
