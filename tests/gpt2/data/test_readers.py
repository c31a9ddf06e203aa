"""Every bad input has a decided outcome: accepted, quarantined with its place, or the file is refused."""

import csv
import functools
import gzip
import http.server
import io
import json
import os
import threading
import tracemalloc
import zipfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2.data.readers import documents
from gpt2.data.sources import UnreadableFile, expand, source_id

GOOD = b'{"text": "fine"}\n'


def read(path, data: bytes, max_bytes: int = 10_000):
    path.write_bytes(data)
    return list(documents(str(path), "text", max_bytes))


def texts(found):
    return [d.text for d in found if d.reason is None]


def reasons(found):
    return [d.reason for d in found if d.reason is not None]


JSONL = [
    (b"", 0, None),
    (b"\n\n  \n" + GOOD, 1, None),
    (GOOD + b'{"text": "cut', 1, "not JSON"),
    (b"[1]\n" + GOOD, 1, "JSON list, not an object"),
    (b'{"body": "x"}\n' + GOOD, 1, "no key 'text'"),
    (b'{"text": null}\n' + GOOD, 1, "'text' is NoneType, not text"),
    (b'{"text": 3}\n' + GOOD, 1, "'text' is int, not text"),
    (b'{"text": ' + b"[" * 100_000 + b"\n" + GOOD, 1, "too long"),
    (b'{"text": ' + b"[" * 9_000 + b"\n" + GOOD, 1, "JSON"),
    (b'{"text": "a", "text": "b"}\n', 1, None),
    (b'{"x": NaN, "text": "b"}\n', 1, None),
    (GOOD.replace(b"\n", b"\r\n") * 2, 2, None),
    ('{"text": "one\u2028line"}\n'.encode(), 1, None),
    (b"\xef\xbb\xbf" + GOOD, 1, None),
    ('{"text": "é"}\n'.encode() * 3 + b'{"text": "\xff"}\n' + GOOD, 4, "invalid UTF-8"),
    (b'{"text": "caf\xe9"}\n' + GOOD, 2, None),
    (b'{"text": "\\ud800"}\n' + GOOD, 1, "lone surrogate"),
    (b'{"text": "a\\u0000b"}\n' + GOOD, 1, "NUL byte"),
    (b'{"text": "a\x00b"}\n' + GOOD, 1, "NUL byte"),
    (b'{"text": "<|endoftext|>"}\n', 1, None),
    (b"x" * 50_000 + b"\n" + GOOD, 1, "too long"),
]


@pytest.mark.parametrize(("data", "accepted", "reason"), JSONL)
def test_jsonl(tmp_path, data, accepted, reason):
    found = read(tmp_path / "a.jsonl", data)
    assert len(texts(found)) == accepted
    assert len(reasons(found)) == (reason is not None)
    if reason:
        assert reason in reasons(found)[0]


def test_place_is_exact(tmp_path):
    lines = [GOOD, b'{"text": "caf\xc3\xa9"}\r\n', b"\n", b"oops\n", GOOD]
    found = read(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + b"".join(lines))
    [bad] = [d for d in found if d.reason]
    assert (bad.line, bad.text) == (4, "oops")
    data = (tmp_path / "a.jsonl").read_bytes()
    assert data[bad.byte_offset :].startswith(b"oops")
    assert [d.line for d in found] == [1, 2, 4, 5]


@pytest.mark.parametrize(
    ("data", "expected", "reason"),
    [
        (b"text\nplain\n", ["plain"], None),
        (b'id,text\n1,"two\nlines"\n2,b\n', ["two\nlines", "b"], None),
        (b'text\r\n"say ""yes"""\r\n', ['say "yes"'], None),
        (b"id,text\n1\n2,b\n", ["", "b"], None),
        (b"id,text\n1,a,c\n2,b\n", ["b"], "3 fields, the header has 2"),
        (b'text\n"never closed\nb\nc\n', ["b", "c"], "a stray quote"),
        (b'text\n"a" b\nc\n', ["c"], "a stray quote"),
        (b"text\ncaf\xe9 \x80\nb\n", ["café €", "b"], None),
        ("text\né\né\né\n".encode() + b"caf\xe9\n", ["é"] * 3, "invalid UTF-8"),
        (b"\n\ntext\na\n", ["a"], None),
        (b"text\na\x00b\nc\n", ["c"], "NUL byte"),
        ("text\nschön 🎬\n".encode(), ["schön 🎬"], None),
        (b"\xef\xbb\xbftext\na\n", ["a"], None),
        (b"text\n" + b"x" * 20_000 + b"\nb\n", ["b"], "too long"),
        (b'text\n"' + b"x" * 20_000 + b'"\nb\n', ["b"], "too long"),
        (b"text\n", [], None),
    ],
)
def test_csv(tmp_path, data, expected, reason):
    found = read(tmp_path / "a.csv", data)
    assert texts(found) == expected
    assert len(reasons(found)) == (reason is not None)
    if reason:
        assert reasons(found)[0].startswith(reason)
        assert data[next(d.byte_offset for d in found if d.reason) - 1 :][:1] == b"\n"


def test_missing_column_is_refused(tmp_path):
    with pytest.raises(UnreadableFile, match=r"no column 'text'; it has id, body: set corpus\.text_field"):
        read(tmp_path / "a.csv", b"id,body\n1,a\n")
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(UnreadableFile, match="no column 'text'; it has body"):
        list(documents(str(tmp_path / "a.parquet"), "text", 100))


def test_parquet(tmp_path):
    pq.write_table(pa.table({"text": ["a", None, "b\0", "c"]}), tmp_path / "a.parquet")
    found = list(documents(str(tmp_path / "a.parquet"), "text", 100))
    assert texts(found) == ["a", "c"]
    assert [(d.line, d.reason) for d in found if d.reason] == [(2, "'text' is NoneType, not text"), (3, "NUL byte")]
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:60])
    with pytest.raises(UnreadableFile, match=r"b\.parquet can't be read"):
        list(documents(str(tmp_path / "b.parquet"), "text", 100))


def compress(data: bytes, kind: str) -> bytes:
    return gzip.compress(data) if kind == ".gz" else zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize("kind", [".gz", ".zst"])
def test_compressed(tmp_path, kind):
    data = b"".join(b"line %d of some text\n" % i for i in range(5000))
    whole = compress(data, kind)
    assert len(read(tmp_path / f"a.txt{kind}", whole)) == 5000
    assert len(read(tmp_path / f"b.txt{kind}", whole + compress(b"more\n", kind))) == 5001
    for cut in (len(whole) - 1, len(whole) // 2):
        with pytest.raises(UnreadableFile, match="cut or damaged"):
            read(tmp_path / f"c.txt{kind}", whole[:cut])
    with pytest.raises(UnreadableFile, match=f"d.txt{kind}"):
        read(tmp_path / f"d.txt{kind}", data)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_utf_16_is_read_and_damage_in_it_stays_local(tmp_path, encoding):
    text = "\ufeff{}one\n“two” 🎬\n"
    assert texts(read(tmp_path / "a.txt", text.format("").encode(encoding))) == ["one", "“two” 🎬"]
    (lone, *others) = read(tmp_path / "a.txt", text.format("\ud83d").encode(encoding, "surrogatepass"))
    assert lone.reason == "invalid UTF-8 at byte 0" and texts(others) == ["“two” 🎬"]
    assert [d.byte_offset for d in others] == [None]
    with pytest.raises(UnreadableFile, match=r"a\.txt is no utf-.*, or is cut"):
        read(tmp_path / "a.txt", text.format("").encode(encoding)[:-1])


def test_a_huge_line_is_not_held(tmp_path):
    path = tmp_path / "a.jsonl"
    with open(path, "wb") as stream:
        for _ in range(100):
            stream.write(b"x" * 1_000_000)
        stream.write(b"\n" + GOOD)
    tracemalloc.start()
    found = list(documents(str(path), "text", 100_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert texts(found) == ["fine"] and reasons(found) == ["too long"]
    assert peak < 10_000_000


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8))
def test_any_text_comes_back_from_csv_and_jsonl(tmp_path, rows):
    out = io.StringIO(newline="")
    csv.writer(out).writerows([("id", "text"), *rows])
    found = read(tmp_path / "a.csv", out.getvalue().encode())
    assert texts(found) == [text for _, text in rows] and not reasons(found)
    data = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for _, text in rows).encode()
    found = read(tmp_path / "a.jsonl", data)
    assert texts(found) == [text for _, text in rows] and not reasons(found)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.sampled_from(["a.csv", "a.jsonl", "a.txt", "a.txt.gz", "a.txt.zst"]))
def test_any_bytes_end_in_documents_or_a_refusal(tmp_path, data, name):
    try:
        found = read(tmp_path / name, b"text\n" + data if name == "a.csv" else data, 100)
    except UnreadableFile as error:
        assert name in str(error)
    else:
        assert all("\0" not in d.text for d in found if d.reason is None)


def test_sources(tmp_path):
    (tmp_path / "b.txt").write_text("x")
    (tmp_path / "a.jsonl.gz").write_bytes(b"")
    (tmp_path / "c.pdf").write_text("x")
    assert [p.rsplit("/", 1)[1] for p in expand([str(tmp_path)])] == ["a.jsonl.gz", "b.txt"]
    assert expand([str(tmp_path / "*.txt")]) == [str(tmp_path / "b.txt")]
    for source, message in (
        (str(tmp_path / "c.pdf"), "is not one of .txt"),
        (str(tmp_path / "none.txt"), "does not exist"),
        (str(tmp_path / "*.csv"), "holds no file"),
    ):
        with pytest.raises(ValueError, match=message):
            expand([source])


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def web(tmp_path, request):
    """A folder and the address at which a real HTTP server shows it."""
    handler = functools.partial(getattr(request, "param", Quiet), directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_remote_files_are_read_like_local_ones(web):
    folder, address = web
    rows = [{"text": f"document {i}"} for i in range(300)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "a.jsonl").write_bytes(lines)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    pq.write_table(pa.Table.from_pylist(rows), folder / "c.parquet")
    for name in ("a.jsonl", "b.jsonl.gz", "c.parquet"):
        (url,) = expand([f"{address}/{name}"])
        assert texts(documents(url, "text", 10_000)) == [row["text"] for row in rows], name
        assert source_id(url) == source_id(url)
    with pytest.raises(ValueError, match="does not exist"):
        expand([f"{address}/absent.jsonl"])


def test_the_id_follows_from_content_form_and_compression(tmp_path):
    """A wrongly named file is cured by its new name; a copy elsewhere is the same."""
    (tmp_path / "other").mkdir()
    names = ("d.txt", "d.jsonl", "d.jsonl.gz", "d.csv", "d.dat", "other/E.JSONL")
    for name in names:
        (tmp_path / name).write_bytes(GOOD)
    ids = {name: source_id(str(tmp_path / name)) for name in names}
    assert ids["d.jsonl"] == ids.pop("other/E.JSONL")
    assert len(set(ids.values())) == len(ids)
    (tmp_path / "d.jsonl").write_bytes(GOOD * 2)
    assert source_id(str(tmp_path / "d.jsonl")) != ids["d.jsonl"]


class Plain(Quiet):
    """Sends no version, only the bytes, as many applications do."""

    def send_header(self, keyword, value):
        if keyword != "Last-Modified":
            super().send_header(keyword, value)


class Tagged(Plain):
    """Sends an ETag that does not follow from size or time."""

    def end_headers(self):
        self.send_header("ETag", '"' + Path(self.directory, "tag").read_text() + '"')
        super().end_headers()


@pytest.mark.parametrize("web", [Quiet, Plain, Tagged], indirect=True)
def test_the_id_of_a_url_changes_with_what_is_there(web):
    folder, address = web
    (folder / "tag").write_text("v1")
    (folder / "feed.jsonl").write_bytes(GOOD)
    os.utime(folder / "feed.jsonl", (1_700_000_000,) * 2)
    before = source_id(f"{address}/feed.jsonl")
    assert source_id(f"{address}/feed.jsonl") == before
    (folder / "tag").write_text("v2")
    (folder / "feed.jsonl").write_bytes(GOOD.replace(b"fine", b"FINE"))  # of the same size
    assert source_id(f"{address}/feed.jsonl") != before
    with pytest.raises(ValueError, match=r"absent\.jsonl does not exist; check the address"):
        source_id(f"{address}/absent.jsonl")


def test_a_remote_file_has_one_id_however_it_was_found():
    """A store's listing and its answer for one file differ in what else they say."""
    memory = fsspec.filesystem("memory")
    memory.pipe("/one-id/a.jsonl", GOOD)
    [path] = expand(["memory://one-id"])
    before = source_id(path)
    assert source_id("memory://one-id/a.jsonl") == before
    memory.pipe("/one-id/a.jsonl", GOOD * 2)
    assert source_id(path) != before


def test_a_chained_address_is_refused_by_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.jsonl", GOOD)
    for read_address in (lambda address: expand([address]), source_id):
        with pytest.raises(ValueError, match=r"zip://a\.jsonl::.*chained addresses are not read; unpack the file"):
            read_address(f"zip://a.jsonl::{tmp_path}/x.zip")
    (tmp_path / "a::b.jsonl").write_bytes(GOOD)
    [path] = expand([str(tmp_path / "a::b.jsonl")])
    assert texts(documents(path, "text", 100)) == ["fine"] and source_id(path)


ODD = ("Author [2013].jsonl", "what?.jsonl", "a*.jsonl", "[x].parquet", "100% & = #1.jsonl")


def test_a_name_that_exists_is_that_file(tmp_path):
    (tmp_path / "a1.jsonl").write_bytes(GOOD)
    (tmp_path / "Author 2.jsonl").write_bytes(GOOD)
    (tmp_path / "in [2] parts").mkdir()
    for name in (*ODD, "in [2] parts/a.jsonl"):
        path = tmp_path / name
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"text": ["fine"]}), path)
        else:
            path.write_bytes(GOOD)
        assert expand([str(path)]) == [str(path)]
        assert texts(documents(str(path), "text", 100)) == ["fine"]
    assert expand([str(tmp_path / "in [2] parts")]) == [str(tmp_path / "in [2] parts" / "a.jsonl")]
    assert expand([str(tmp_path / "in [2] parts" / "*.jsonl")]) == [str(tmp_path / "in [2] parts" / "a.jsonl")]
    assert expand([str(tmp_path / "a[0-9].jsonl")]) == [str(tmp_path / "a1.jsonl")]  # else it is a glob
    memory = fsspec.filesystem("memory")
    memory.pipe("/odd/x [1].jsonl", GOOD)
    assert expand(["memory://odd/x [1].jsonl"]) == ["memory:///odd/x [1].jsonl"]


def test_the_path_of_a_url_decides_not_its_query(web):
    folder, address = web
    (folder / "data.jsonl").write_bytes(GOOD)
    (folder / "page").write_bytes(GOOD)
    for query in ("?download=1", "?X-Amz-Signature=a%2Fb&x=[1]", "?name=x.csv", "?a=b.gz"):
        [url] = expand([f"{address}/data.jsonl{query}"])
        assert texts(documents(url, "text", 100)) == ["fine"] and source_id(url)
    with pytest.raises(ValueError, match=r"absent\.jsonl\?download=1 does not exist"):
        expand([f"{address}/absent.jsonl?download=1"])
    with pytest.raises(ValueError, match=r"page\?as=x\.jsonl is not one of \.txt"):
        expand([f"{address}/page?as=x.jsonl"])


def test_a_part_without_rows_has_no_documents(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "part-00001.parquet")
    assert list(documents(str(tmp_path / "part-00001.parquet"), "text", 100)) == []


def test_only_the_column_of_texts_is_read(tmp_path):
    """Others may have any type: a map, or one that no reader knows."""
    others = {"meta": pa.array([[("a", "b")]] * 2, pa.map_(pa.string(), pa.string())), "big": ["x" * 10**6] * 2}
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int8(), pa.string())):
        pq.write_table(pa.table({"text": pa.array(["a", "é"], kind), **others}), tmp_path / "a.parquet")
        assert texts(documents(str(tmp_path / "a.parquet"), "text", 100)) == ["a", "é"], kind
    pq.write_table(pa.table({"text": pa.array([b"\xff", b"b"], pa.binary())}), tmp_path / "b.parquet")
    assert [d.reason for d in documents(str(tmp_path / "b.parquet"), "text", 100)] == [
        "invalid UTF-8 at byte 0 of the document", None,
    ]  # fmt: skip


def test_a_long_window_of_zstd_is_named(tmp_path):
    long = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    ).compressobj()  # without its size: with it, the window is no larger than the text
    with pytest.raises(UnreadableFile, match=r"a\.jsonl\.zst needs a window over 128 MB.*zstd -d --long=31"):
        read(tmp_path / "a.jsonl.zst", long.compress(GOOD * 3000) + long.flush())


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 7\n"
    for name in ("a.txt", "a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz", "a.jsonl.zst"):
        with pytest.raises(UnreadableFile, match=rf"{name} is a pointer of git-lfs.*git lfs pull"):
            read(tmp_path / name, pointer)
