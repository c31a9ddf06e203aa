"""Lines and csv records as people have them: stray quotes, escapes, Windows' bytes; each row is one or is counted."""

import json

import pytest

from flows.commands.use import read_inputs
from gpt2.data.config import PLAIN
from gpt2.data.tables import json_records, read_table, records
from gpt2.monitoring.config import MonitorConfig
from gpt2.monitoring.posts import read
from gpt2.tasks.sentiment.config import SentimentSettings
from gpt2.tasks.sentiment.dataset import read_labelled

TEXTS = [f"text number {i} on something" for i in range(60)]
LABELS = ["pos" if i % 2 else "neg" for i in range(60)]


def rows() -> list[str]:
    return [f"{text},{label}" for text, label in zip(TEXTS, LABELS, strict=True)]


def both(path):
    """The texts of a csv as the classifier and the monitor read it, and the numbers of the rows that each left out."""
    table, counts = read_labelled(path, SentimentSettings())
    posts, bad = read(str(path), "inbox", MonitorConfig())
    assert counts["rows"] == len(table) + counts["empty"] == len(posts) + len(bad)
    assert table["text"].tolist() == posts["text"].tolist()
    return table, sorted(set(range(1, counts["rows"] + 1)) - set(table["row"])), [number for number, _ in bad]


# Row 8: only \n and \r\n end a line of text


def test_a_text_file_has_a_row_per_line(tmp_path):
    lines = ["one\u2028two", "three\x0cfour\x1c", "five\x85six\u2029", "seven\reight"]
    for end in ("\n", "\r\n"):
        (tmp_path / "posts.txt").write_bytes(end.join([*lines, ""]).encode())
        assert read_inputs(tmp_path / "posts.txt") == lines


# Row 7: a stray quote swallows no row


@pytest.mark.parametrize("closing", [None, 21, 22])
def test_a_stray_quote_costs_its_own_row(tmp_path, closing):
    lines = rows()
    lines[3] = '"' + lines[3]
    if closing:
        lines[closing - 1] = f'"{TEXTS[closing - 1]}",{LABELS[closing - 1]}'
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    table, *left_out = both(tmp_path / "a.csv")
    assert left_out == [[4], [4]]
    assert table["text"].tolist() == TEXTS[:3] + TEXTS[4:] and table["label"].tolist() == LABELS[:3] + LABELS[4:]


def test_many_stray_quotes_are_read_in_one_pass(tmp_path):
    lines = [f'"{row}' if i % 2 else row for i, row in enumerate(rows())] * 200
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(lines))
    assert [fault is None for _, _, fault in records(str(tmp_path / "a.csv"))] == [True, False] * 6000


def test_a_row_that_ends_in_a_quote_does_not_take_the_rows_before_it(tmp_path):
    lines = rows()
    lines[3], lines[20] = '"' + lines[3], lines[20] + '"'
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    table, *left_out = both(tmp_path / "a.csv")
    assert left_out == [[4], [4]] and table["label"][20] == 'neg"'


def test_texts_of_several_lines_stay_whole_and_short_rows_have_empty_cells(tmp_path):
    (tmp_path / "a.csv").write_text('text,label,n\r\n"one, ""two""\r\nthree",pos,1\r\n\r\nfour,neg\r\n')
    table = read_table(tmp_path / "a.csv")
    assert table["text"].tolist() == ['one, "two"\r\nthree', "four"] and table["n"].isna().tolist() == [False, True]
    (tmp_path / "a.csv").write_text('text,label\n"one",pos\ntwo, three,neg\n')
    with pytest.raises(ValueError, match="row 2 has 3 fields, the header has 2; put texts with commas in quotes"):
        read_table(tmp_path / "a.csv")


# Row 6: quotes after a backslash (Spark, MySQL)


@pytest.mark.parametrize("said", ['he said "hi", twice', 'a path C:\\new and "that"', "ends in a backslash \\", '"hi"'])
def test_quotes_after_a_backslash_are_quotes(tmp_path, said):
    texts = [f"{i} {said}" for i in range(20)] + ['20 "so"']
    escaped = [text.replace("\\", "\\\\") if text.endswith("\\") else text for text in texts]
    lines = ['"{}",pos'.format(text.replace('"', '\\"')) for text in escaped]
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    table, *left_out = both(tmp_path / "a.csv")
    assert table["text"].tolist() == texts and left_out == [[], []]


def test_a_backslash_at_the_end_of_a_quoted_text_is_one(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\n"C:\\dir\\",pos\n"D:\\",neg\n')
    assert both(tmp_path / "a.csv")[0]["text"].tolist() == ["C:\\dir\\", "D:\\"]


# Row 5: Windows' bytes


def test_a_file_that_is_no_utf8_is_of_windows_at_each_door(tmp_path):
    text = "“great” – it’s 5 €"
    (tmp_path / "a.csv").write_bytes(f'text,label\r\n"{text}",pos\r\nplain,neg\r\n'.encode("cp1252"))
    assert both(tmp_path / "a.csv")[0]["text"].tolist() == [text, "plain"] == read_inputs(tmp_path / "a.csv")
    (tmp_path / "a.jsonl").write_bytes(json.dumps({"text": text}, ensure_ascii=False).encode("cp1252") + b"\n")
    (tmp_path / "a.txt").write_bytes(text.encode("cp1252") + b"\r\n")
    for end in ("jsonl", "txt"):
        assert read_inputs(tmp_path / f"a.{end}") == [text]
    assert read(str(tmp_path / "a.jsonl"), "inbox", MonitorConfig())[0]["text"].tolist() == [text]
    (tmp_path / "b.txt").write_bytes(b"\x81\x93\n")
    assert read_inputs(tmp_path / "b.txt") == ["\x81\x93"]  # Windows-1252 has no 81


def test_one_damaged_row_in_a_file_of_utf8_is_bad_and_spoils_no_other(tmp_path):
    (tmp_path / "a.csv").write_bytes(
        "text,label\nGrüße,pos\nTsch\xfcß,neg\nhé,neg\n".encode().replace(b"\xc3\xbc\xc3\x9f,n", b"\xfc,n")
    )
    table, *left_out = both(tmp_path / "a.csv")
    assert table["text"].tolist() == ["Grüße", "hé"] and left_out == [[2], [2]]
    (tmp_path / "growing.jsonl").write_bytes('{"text": "Grüße"}\n{"text": "😀'.encode()[:-2])
    assert [row for _, row, _ in json_records(str(tmp_path / "growing.jsonl"), PLAIN)] == [{"text": "Grüße"}]


# Row 41: what is no text at `gpt2 predict`


def test_inputs_are_texts_whatever_else_a_row_has(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1,NA\n2,null\n3,None\n4,12\n")
    assert read_inputs(tmp_path / "a.csv") == ["NA", "null", "None", "12"]
    (tmp_path / "a.jsonl").write_text('{"text": "x", "id": 7}\n{"text": 12}\n{"user": "u"}\n')
    assert read_inputs(tmp_path / "a.jsonl") == ["x", "12", {"user": "u"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "id,text\n1,one\n2,\n", "row 2 has no text in `text`"),
        ("a.jsonl", '{"text": "x"}\n{"text": null, "id": 1}\n', "row 2 has no text in `text`"),
        ("a.jsonl", "12\n", "row 1 is 12, neither a string nor an object"),
    ],
)
def test_a_row_without_text_is_named_with_its_reason(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"--input .*{name}") as caught:
        read_inputs(tmp_path / name)
    assert message in str(caught.value)
