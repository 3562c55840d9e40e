"""Text of others: nothing that a terminal, a browser or a spreadsheet obeys, and everything reads back as it was."""

import csv
import io
import json

from hypothesis import given
from hypothesis import strategies as st
from mlemiss.pipeline.console import plain, printable
from mlemiss.pipeline.files import csv_lines, csv_text, csv_value, json_text
from mlemiss.pipeline.page import _environment

HOSTILE = "\x1b[31m\x9b2Jred\u202egnp.exe\u2066\x07"
ANY = st.text(st.characters(codec=None, exclude_categories=()))
JSON = st.recursive(st.none() | st.booleans() | st.integers() | ANY, lambda v: st.lists(v) | st.dictionaries(ANY, v))


@given(ANY)
def test_nothing_is_printed_that_a_terminal_obeys(text):
    assert printable(text).isprintable() and len(printable(text)) == len(text)
    assert printable("naïve Zoë 你好 🙂") == "naïve Zoë 你好 🙂"


@given(JSON)
def test_json_reads_back_as_it_was(document):
    for indent in (None, 1):
        text = json_text(document, indent)
        assert json.loads(text) == document and all(c.isprintable() or c == "\n" for c in text)


def test_json_without_marks_is_written_as_it_was_before():
    document = {"a": ["ä 你 🙂", 'quote " and \\', None, 1.5]}
    assert json_text(document, 1) == json.dumps(document, indent=1, ensure_ascii=False)


@given(st.lists(st.lists(ANY.filter(lambda t: "\0" not in t), min_size=2, max_size=2)))
def test_ids_read_back_from_a_csv_as_they_were(rows):
    file = io.StringIO(newline="")
    csv_lines(file, ["a", "b"], rows)
    file.seek(0)
    read = list(csv.reader(file))[1:]
    assert not any(field.startswith(tuple("=+-@")) and not _number(field) for row in read for field in row)
    assert [[csv_text(field) for field in row] for row in read] == rows


def _number(text: str) -> bool:
    try:
        return float(text) is not None
    except ValueError:
        return False


def test_formulas_are_text_and_numbers_are_numbers():
    for text in ("=1+1", "+1+1", "-2+3+cmd|' /C calc'!A0", "@SUM(A1)", "'=x", "\tx"):
        assert csv_value(text) == f"'{text}" and csv_text(f"'{text}") == text
    for value in ("-0.5", "+1e-3", "-inf", -0.5, None, "a=b", "clip-1", "'quoted'", ""):
        assert csv_value(value) == value
    assert csv_text("'quoted'") == "'quoted'"


def test_documents_and_pages_hold_no_marks(tmp_path):
    assert plain({HOSTILE: [HOSTILE, 1, None], "b": "two\nlines"}) == {
        printable(HOSTILE): [printable(HOSTILE), 1, None],
        "b": "two\nlines",
    }
    (tmp_path / "page.html").write_text(
        "<p>{{ text }} {{ 1.5 }} {{ inner }}</p>{% macro m() %}<b>{% endmacro %}{{ m() }}"
    )
    page = _environment(tmp_path).get_template("page.html").render(text=f"<i>{HOSTILE}\n", inner="é")
    assert page == f"<p>&lt;i&gt;{printable(HOSTILE)}\n 1.5 é</p><b>"
