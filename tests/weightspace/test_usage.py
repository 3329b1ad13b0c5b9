"""Wrong uses of the commands end in a line in the user's words, whatever keys the parser has."""

import pytest

from probes.cli import main as probes
from weightspace.cli import main as weightspace
from weightspace.components.usage import in_words
from zoo_builder.cli import main as zoo_builder

USES = [
    (zoo_builder, "build", "`zoo-builder build` needs config and out; `zoo-builder build --help` has an example."),
    (zoo_builder, "verify", "`zoo-builder verify` needs folder;"),
    (zoo_builder, "study", "`zoo-builder study` needs a command, one of run, table;"),
    (zoo_builder, "study run", "`zoo-builder study run` needs out; `zoo-builder study run --help` has"),
    (zoo_builder, "bench --hidden zero", "`hidden` (=zero) must be a whole number."),
    (weightspace, "", "`weightspace` needs a command, one of fit, validate, test, predict, embed,"),
    (weightspace, "embed", "`weightspace embed` needs out; `weightspace embed --help` has"),
    (weightspace, "check familys", "`what` (=familys) must be one of 'families', 'encoders'."),
    (weightspace, "quickstart --size big", "`size` (=big) must be one of 'tiny', 'default'."),
    (probes, "run", "`probes run` needs zoo and out; `probes run --help` has an example."),
]


@pytest.mark.parametrize(("main", "arguments", "message"), USES, ids=[message[:40] for *_, message in USES])
def test_a_wrong_use_is_said_in_the_words_of_the_command_line(main, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    assert stopped.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(f"error: {message}")


def test_other_messages_of_a_parser_stay_what_they_are():
    assert in_words("unrecognized arguments: --jsn", "zoo-builder info") == "unrecognized arguments: --jsn"
