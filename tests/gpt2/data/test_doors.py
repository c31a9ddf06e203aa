"""One reader for all doors: a table in any form gives equal rows at each, or a refusal that names the file."""

import csv
import functools
import gzip
import http.server
import io
import json
import random
import threading
from decimal import Decimal
from pathlib import Path

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from flows.commands.use import read_inputs
from gpt2.data.config import PLAIN, CorpusConfig, FileForm
from gpt2.data.corpus import normalise
from gpt2.data.readers import documents
from gpt2.data.sources import expand, source_id
from gpt2.data.tables import cell, read_table, records
from gpt2.monitoring.config import MonitorConfig
from gpt2.monitoring.posts import read
from gpt2.tasks.reasons import dataset as reasons
from gpt2.tasks.reasons.config import ReasonsSettings
from gpt2.tasks.recommendation.catalogue import read_interactions, read_items
from gpt2.tasks.recommendation.config import InteractionsFile, RecommendationSettings
from gpt2.tasks.sentiment.config import SentimentSettings
from gpt2.tasks.sentiment.dataset import read_labelled
from gpt2.tasks.support.config import SupportSettings
from gpt2.tasks.support.dataset import read_source

WORDS = [
    "plain", "café", "it’s", "“so”", "5 €", "naïve", 'he said "hi", twice', "a, b", "x; y", "x | y", "C:\\dir\\",
    "tab\there", "line\nend", "one\r\ntwo", "007", "NA", "null", "1.50", "<|endoftext|>", "'", '"', "\\", "%s", "{}",
    "=1+1", "#",
]  # fmt: skip
WIDE = ["日本語の", "🎬", "a\u2028b", "Ω", "ไทย", "\u200b", "x\u0085y", "é́"]
COLUMNS = ("text", "label", "id", "price", "good", "time")
STRINGS = [
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(),
    pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string()),
]  # fmt: skip
NARROW = ("cp1252",)
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", *NARROW)


class Drawn:
    """A table, and the files that it is written as."""

    def __init__(self, seed: int):
        self.draw = draw = random.Random(seed)
        self.form, self.encoding = (
            draw.choice(("csv", "tsv", "jsonl", "ndjson", "json", "parquet")),
            draw.choice(ENCODINGS),
        )
        words = WORDS if self.encoding in NARROW else WORDS + WIDE
        self.escaped, self.end = draw.random() < 0.3, draw.choice(("\n", "\r\n"))
        self.separator = "\t" if self.form == "tsv" else draw.choice(",;\t|")
        self.packing = draw.choice(("", "", ".gz", ".zst"))
        self.gaps, self.upper = draw.random() < 0.5, draw.random() < 0.2

        def cells(value):
            return None if self.gaps and draw.random() < 0.15 else value()

        self.rows = [
            {
                "text": cells(lambda: " ".join(draw.choices(words, k=draw.randint(1, 6)))),
                "label": cells(lambda: draw.choice(["pos", "neg", "NA", "0", "très"])),
                "id": cells(lambda: draw.choice([draw.randrange(10), draw.randrange(2**62), -(2**60) + 1])),
                "price": cells(lambda: Decimal(draw.randrange(10**6)).scaleb(-2)),
                "good": cells(lambda: draw.random() < 0.5),
                "time": 1_700_000_000 + draw.randrange(10**6),
            }
            for _ in range(draw.randint(1, 12))
        ]
        cuts = sorted(draw.choices(range(len(self.rows) + 1), k=draw.choice((0, 0, 1, 2))))
        self.parts = [self.rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(self.rows)], strict=True)]
        for part in self.parts if self.escaped else ():  # a file without a quote inside quotes may be of either kind
            part[:1] = [row | {"text": 'he said "hi" and left'} for row in part[:1]]
        self.rows = [row for part in self.parts for row in part]

    def __repr__(self):
        return f"{vars(self)}"

    def write(self, folder: Path) -> list[Path]:
        folder.mkdir()
        (folder / "_SUCCESS").touch()
        paths = []
        for number, rows in enumerate(self.parts):
            data = self.parquet(rows) if self.form == "parquet" else self.lines(rows)
            if self.packing:
                data = gzip.compress(data) if self.packing == ".gz" else zstandard.compress(data)
            name = f"part {number}.{self.form}{self.packing}"
            paths.append(folder / (name.upper() if self.upper else name))
            paths[-1].write_bytes(data)
        return paths

    def lines(self, rows) -> bytes:
        if self.form in ("csv", "tsv"):
            text = self.quoted(rows) if self.escaped else self.csv(rows)
        else:
            ascii = self.draw.random() < 0.3
            kept = [
                {
                    k: v
                    for k, v in row.items()
                    if v is not None or row is rows[0] or k == "text" or self.draw.random() < 0.5
                }
                for row in rows
            ]
            plain = [{k: str(v) if isinstance(v, Decimal) else v for k, v in row.items()} for row in kept]
            text = "".join(
                json.dumps({**row, "tags": ["a", "b"]}, ensure_ascii=ascii) + self.draw.choice((self.end, self.end * 2))
                for row in plain
            )
        return text.encode(self.encoding)

    def csv(self, rows) -> str:
        out = io.StringIO(newline="")
        quoting = self.draw.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC))
        writer = csv.DictWriter(out, COLUMNS, delimiter=self.separator, lineterminator=self.end, quoting=quoting)
        writer.writeheader()
        for row in rows:
            # Python 3.11 leaves a lone line end of another kind without quotes
            writer.writerow({k: "" if v is None else v for k, v in row.items()})
        return out.getvalue()

    def quoted(self, rows) -> str:
        def field(value) -> str:
            text, out = "" if value is None else str(value), ""
            for part in text.split('"'):
                slashes = len(part) - len(part.rstrip("\\"))
                out += part + "\\" * slashes + '\\"'
            return '"' + out.removesuffix('\\"') + '"'

        table = [COLUMNS, *(tuple(row.values()) for row in rows)]
        return "".join(self.separator.join(map(field, row)) + self.end for row in table)

    def parquet(self, rows) -> bytes:
        draw, columns = self.draw, {}
        for name in ("text", "label"):
            type = draw.choice(STRINGS)
            plain = type.value_type if pa.types.is_dictionary(type) else type
            values = [row[name] for row in rows]
            if "binary" in str(plain):
                values = [None if value is None else value.encode() for value in values]
            array = pa.array(values, type=plain)
            columns[name] = array if plain is type else array.dictionary_encode()
        columns["id"] = pa.array([row["id"] for row in rows], pa.int64())
        columns["price"] = pa.array(
            [row["price"] for row in rows], draw.choice((pa.decimal128(12, 2), pa.decimal256(40, 2)))
        )
        columns["good"] = pa.array([row["good"] for row in rows], pa.bool_())
        columns["time"] = pa.array([row["time"] for row in rows], draw.choice((pa.int64(), pa.uint32())))
        columns["tags"] = pa.array(
            [["a", "b"]] * len(rows), draw.choice((pa.list_(pa.string()), pa.large_list(pa.string())))
        )
        columns["meta"] = pa.array([[("k", "v")]] * len(rows), pa.map_(pa.string(), pa.string()))
        table, out = pa.table(columns), io.BytesIO()
        if draw.random() < 0.3:
            nullable = {pa.int64(): pd.Int64Dtype(), pa.uint32(): pd.UInt32Dtype(), pa.bool_(): pd.BooleanDtype()}
            table = table.drop_columns(["meta", "tags"]).to_pandas(types_mapper=nullable.get)
            table = pa.Table.from_pandas(table.set_index(table.index + 7))
        pq.write_table(
            table, out, row_group_size=draw.choice((1, 3, 1000)), compression=draw.choice(("none", "zstd", "snappy"))
        )
        return out.getvalue()


def check(drawn: Drawn, folder: Path) -> None:
    """Compare the rows at each door with those that were written."""
    paths = [str(path) for path in drawn.write(folder)]
    source = str(folder) if len(paths) > 1 else paths[0]
    right = [[cell(row[name]) for name in COLUMNS] for row in drawn.rows]
    table = read_table(source)
    assert [
        [cell(v) for v in row] for row in zip(*(table.get(n, [None] * len(table)) for n in COLUMNS), strict=True)
    ] == right
    assert sorted(expand([source])) == expand([source]) == sorted(paths)
    one_by_one = [record for path in expand([source]) for record in records(path)]
    assert [[cell(row.get(name)) for name in COLUMNS] for _, row, _ in one_by_one] == right
    assert {fault for *_, fault in one_by_one} <= {None}
    texts = [row[0] for row in right if row[0]]
    both = [row[:2] for row in right if row[0] and row[1]]

    found, counts = read_labelled(source, SentimentSettings(time_field=None))
    assert found[["text", "label"]].to_numpy().tolist() == both
    assert counts == {"rows": len(right), "empty": len(right) - len(both)}
    posts, bad = [], []
    for path in expand([source]):
        some, wrong = read(path, "inbox", MonitorConfig(id_field=None))
        posts, bad = posts + some["text"].tolist(), bad + wrong
    assert posts == texts and len(bad) == len(right) - len(texts)
    whole = [d for path in expand([source]) for d in documents(path, "text", 10**6)]
    assert [normalise(d.text).strip() for d in whole if d.reason is None and d.text.strip()] == list(
        map(normalise, texts)
    )
    assert len(whole) == len(right)
    if len(texts) == len(right):
        assert [text.strip() for text in read_inputs(source)] == texts
    else:
        with pytest.raises(ValueError, match=r"--input .*part \d.* row \d+ has no text in `text`|(?i:part \d)"):
            read_inputs(source)
    described = list(dict.fromkeys(row[2] for row in right if row[2] and (row[0] or row[3] or row[4])))
    if described:
        items, _ = read_items(source, RecommendationSettings(attributes=["price", "good"], title_field=None))
        assert items["item"].tolist() == described
    pairs = [[row[2], row[1]] for row in right if row[1] and row[2]]
    if pairs:
        reading = InteractionsFile(user_field="id", item_field="label")
        choices, counts = read_interactions(source, reading)
        assert choices[["user", "item"]].to_numpy().tolist() == pairs
        assert counts == {"without_user_or_item": len(right) - len(pairs), "untimed": 0}
    answers = read_source(source, SupportSettings(question_field="text", answer_field="label"))
    assert answers.astype(object).where(answers.notna(), None).to_numpy().tolist() == [row[:2] for row in right]
    reviews, counts = reasons.read(source, ReasonsSettings(label_field=None)) if texts else (None, {"rows": len(right)})
    assert counts["rows"] == len(right) and (reviews is None or set(reviews["text"]) == set(map(normalise, texts)))


@pytest.mark.parametrize("seed", range(100))
def test_a_table_has_equal_rows_at_every_door(tmp_path, seed):
    check(Drawn(seed), tmp_path / "in")


@pytest.mark.slow
@pytest.mark.parametrize("start", range(100, 1100, 100))
def test_a_thousand_tables_have_equal_rows_at_every_door(tmp_path, start):
    for seed in range(start, start + 100):
        check(Drawn(seed), tmp_path / str(seed))


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Some bytes cut off, changed or put in."""
    place = draw.randrange(len(data) + 1)
    odd = bytes(draw.choices(b'\x00\xff"\\\n,{}\xe9\x80', k=draw.randint(1, 3)))
    return draw.choice((data[:place], data[:place] + odd + data[place:], data[:place] + odd + data[place + len(odd) :]))


@pytest.mark.parametrize("start", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(50, 550, 50))])
def test_a_damaged_file_is_refused_in_a_sentence_or_each_row_is_one_or_is_counted(tmp_path, start):
    for seed in range(start, start + 50):
        drawn = Drawn(seed)
        for path in drawn.write(tmp_path / str(seed)):
            path.write_bytes(damaged(path.read_bytes(), drawn.draw))
            doors = (
                lambda path=path: read_labelled(path, SentimentSettings(time_field=None)),
                lambda path=path: read(str(path), "inbox", MonitorConfig()),
                lambda path=path: list(documents(str(path), "text", 10**6)),
                lambda path=path: read_inputs(path),
                lambda path=path: read_items(path, RecommendationSettings(attributes=[])),
                lambda path=path: read_source(path, SupportSettings(question_field="text", answer_field="label")),
            )
            for door in doors:
                try:
                    door()
                except ValueError as error:
                    assert path.name in str(error) and "\n" not in str(error) and len(str(error)) < 900


# Files, folders, globs and addresses


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def web(tmp_path):
    """A folder and the address at which a real HTTP server shows it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


LABELLED = [
    {"text": f"text {i}", "label": "pn"[i % 2], "user": f"u{i % 3}", "item": i, "time": 1_700_000_000 + i}
    for i in range(12)
]


def test_every_door_reads_files_folders_globs_and_addresses(web):
    folder, address = web
    data = "".join(json.dumps(row) + "\n" for row in LABELLED).encode()
    (folder / "parts").mkdir()
    (folder / "parts" / "a.JSONL").write_bytes(data[: data.index(b"\n") + 1])
    (folder / "parts" / "b.jsonl.gz").write_bytes(gzip.compress(data[data.index(b"\n") + 1 :]))
    (folder / "parts" / "notes.md").write_text("x")
    (folder / "star.json").write_bytes(data)
    remote = fsspec.filesystem("memory")
    remote.pipe("/doors/star.jsonl", data)
    texts = [row["text"] for row in LABELLED]
    for source in (
        folder / "star.json", folder / "parts", f"{folder}/parts/*", f"file://{folder}/star.json",
        f"{address}/star.json",
        f"{address}/star.json?download=1", "memory://doors/star.jsonl", "memory://doors", "memory://doors/*.jsonl",
    ):  # fmt: skip
        source = str(source)
        assert read_labelled(source, SentimentSettings())[0]["text"].tolist() == texts, source
        assert read_inputs(source) == texts
        assert len(read_items(source, RecommendationSettings(id_field="item"))[0]) == 12
        assert len(read_interactions(source, RecommendationSettings(source="x", interactions=source))[0]) == 12
        assert len(read_source(source, SupportSettings(question_field="text", answer_field="label"))) == 12
        before = source_id(source)
        assert source_id(source) == before
    remote.pipe("/doors/star.jsonl", data * 2)
    assert source_id("memory://doors/*.jsonl") != before
    for source, message in (
        (f"{address}/none.jsonl", r"none\.jsonl does not exist"),
        (f"{folder}/parts/*.csv", r"\*\.csv holds no file of \.txt"),
        (f"{folder}/parts/notes.md", r"notes\.md is not one of \.txt"),
        ("zip://a.jsonl::x.zip", "chained addresses are not read"),
        ("nothing://x/a.jsonl", "nothing"),
    ):
        for door in (lambda s: read_labelled(s, SentimentSettings()), read_inputs, read_table):
            with pytest.raises(ValueError, match=message):
                door(source)


def test_a_bad_row_of_a_folder_is_named_with_its_file(tmp_path):
    for name, weight in (("a.csv", "1"), ("b.csv", "much")):
        (tmp_path / name).write_text(f"text,label,weight,user,item,time\none,p,1,u,1,2024\ntwo,n,{weight},u,2,2025\n")
    with pytest.raises(ValueError, match=r"b\.csv row 2: weight='much' is not a weight"):
        read_labelled(tmp_path, SentimentSettings(time_field=None))
    with pytest.raises(ValueError, match=r"b\.csv row 2: weight='much' is not a weight"):
        read_interactions(tmp_path, InteractionsFile(min_weight=1))
    (tmp_path / "b.csv").write_text("text,label\n,p\n")
    with pytest.raises(ValueError, match=r"b\.csv row 1 has no text in `text`"):
        read_inputs(tmp_path)


def test_a_column_keeps_its_values_whatever_other_files_have(tmp_path):
    big = 2**60 + 1
    pq.write_table(pa.table({"id": [big, big + 2], "text": ["a", "b"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["c"]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"id": ["x"], "text": ["d"]}), tmp_path / "c.parquet")
    assert [cell(value) for value in read_table(tmp_path)["id"]] == [str(big), str(big + 2), None, "x"]


# What can't be found out is set


def test_separator_and_encoding_can_be_set_at_each_door(tmp_path):
    form = {"separator": "~", "encoding": "koi8-r"}
    (tmp_path / "a.csv").write_bytes("text~label\nпривет, мир~да\nпока~нет\n".encode("koi8-r"))
    texts = ["привет, мир", "пока"]
    assert read_labelled(tmp_path / "a.csv", SentimentSettings(**form))[0]["text"].tolist() == texts
    assert read(str(tmp_path / "a.csv"), "inbox", MonitorConfig(**form))[0]["text"].tolist() == texts
    assert [d.text for d in documents(str(tmp_path / "a.csv"), "text", 1000, CorpusConfig(**form).form)] == texts
    assert read_inputs(tmp_path / "a.csv", FileForm(**form)) == texts
    assert read_inputs(tmp_path / "a.csv", FileForm(**form), "label") == ["да", "нет"]
    assert (
        read_items(tmp_path / "a.csv", RecommendationSettings(id_field="label", **form))[0]["title"].tolist() == texts
    )
    answers = read_source(tmp_path / "a.csv", SupportSettings(question_field="text", answer_field="label", **form))
    assert answers["question"].tolist() == texts
    for wrong, message in (({"encoding": "klingon"}, "no encoding of text"), ({"separator": "a"}, "can't separate")):
        with pytest.raises(ValueError, match=message):
            FileForm(**wrong)


def test_what_surprises_nobody_in_a_csv(tmp_path):
    """A separator in the texts, one column, an old Macintosh's line ends, names that come twice or are none."""
    path = tmp_path / "a.csv"
    path.write_text("id;Pros | Cons;text\n1;a | b, c;one, two, three\n2;x, y;four, five\n")
    assert read_table(path).to_dict("list") == {
        "id": ["1", "2"], "Pros | Cons": ["a | b, c", "x, y"], "text": ["one, two, three", "four, five"],
    }  # fmt: skip
    path.write_text("text\none; two\nthree\tfour\n")
    assert (
        read_table(path)["text"].tolist()
        == ["one; two", "three\tfour"]
        == [r["text"] for _, r, _ in records(str(path))]
    )
    path.write_bytes(b"text,label\ra,b\rc,d\r")
    for door in (read_table, lambda path: list(records(path)), lambda path: list(documents(path, "text", 100))):
        with pytest.raises(
            ValueError, match=r"a\.csv has no readable header .*its lines end in a carriage return alone"
        ):
            door(str(path))
    path.write_text(",a,a,\n0,1,2,3\n")
    assert list(read_table(path)) == ["Unnamed: 0", "a", "a.1", "Unnamed: 3"]
    pq.write_table(pa.Table.from_arrays([pa.array(["x"])] * 2, names=["text", "text"]), tmp_path / "b.parquet")
    for door in (read_table, lambda path: list(records(path)), lambda path: list(documents(path, "text", 100))):
        with pytest.raises(ValueError, match=r"b\.parquet has the column 'text' twice; rename one"):
            door(str(tmp_path / "b.parquet"))


def test_a_short_row_has_empty_cells_at_its_end_at_every_door(tmp_path):
    """Excel leaves out the last separators of some rows."""
    path = tmp_path / "a.csv"
    for short, full in (("1\n", "1,,,\n"), ('"1"\n2,b\n', "1,,,\n2,b,,\n"), ("1,é,p\n", "1,é,p,\n")):
        told = []
        for rows in (short, full):
            path.write_bytes(("id,text,label,time\n" + "0,a,p,2024\n" * 12 + rows + "3,c,n,2025\n").encode())
            support = SupportSettings(question_field="text", answer_field="label")
            choices = InteractionsFile(user_field="id", item_field="label", time_field="time")
            told.append(
                [
                    read_table(path).to_json(),
                    [(n, {k: v for k, v in row.items() if v}, wrong) for n, row, wrong in records(str(path))],
                    [document._replace(byte_offset=None) for document in documents(str(path), "text", 100)],
                    [part.to_json() for part in read_labelled(path, SentimentSettings(time_field=None))[:1]],
                    [str(part) for part in read(str(path), "inbox", MonitorConfig(time_field=None))],
                    read_items(path, RecommendationSettings())[0].to_json(),
                    [str(part) for part in read_interactions(path, choices)],
                    read_source(path, support).to_json(),
                    read_inputs(path, PLAIN, "id"),
                ]
            )
        assert told[0] == told[1]


def test_films_with_a_title_and_no_text_need_no_setting(tmp_path):
    for name, column in (("title", "title"), ("text", "text")):
        (tmp_path / "films.csv").write_text(f"id,{column},year\n1,Alien,1979\n")
        for settings in ({}, {f"{name}_field": column}, {"text_field": column}, {"title_field": column}):
            items, _ = read_items(tmp_path / "films.csv", RecommendationSettings(**settings))
            assert items["title"].tolist() == ["Alien"], settings


def test_a_row_group_is_not_held_whole(tmp_path):
    """Only the columns that are needed are read, in slices."""
    rows = 20_000
    text = [f"{random.Random(i).getrandbits(2000):x}" for i in range(rows)]
    pq.write_table(pa.table({"text": text, "other": text}), tmp_path / "a.parquet", row_group_size=rows)
    pool = pa.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    for count, _ in enumerate(records(str(tmp_path / "a.parquet"), PLAIN, {"text_field": "text"}), 1):  # noqa: B007
        most = max(most, pool.bytes_allocated() - before)
    assert count == rows and most < sum(map(len, text)) / 2
