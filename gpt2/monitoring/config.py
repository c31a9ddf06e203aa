"""The settings of the sentiment monitor: what it reads, how it counts, when it raises an alert."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gpt2.monitoring.alerts import Rule
from gpt2.settings import Settings, operational


class MonitorConfig(Settings):
    """New posts, scored by the champion and counted by topic and time."""

    name: str = Field("posts", pattern="^[a-z0-9][a-z0-9-]{0,40}$")
    """The monitor's name: what one has read, another of another name reads anew."""
    sources: list[str] = Field(["inbox"], min_length=1)
    """Where posts arrive: folders, files, globs or fsspec URLs of .jsonl, .csv or .parquet (.jsonl and .csv also .gz or
    .zst). Files are written whole; a .jsonl may also grow line by line."""
    text_field: str = Field("text", min_length=1)
    """The column of the texts."""
    time_field: str | None = Field(None, min_length=1)
    """The column of the times: ISO 8601, or seconds or milliseconds since 1970; without a zone UTC. One more than
    a day from now is a bad row. Without a column, a post's time is that of the run which reads it."""
    id_field: str | None = Field(None, min_length=1)
    """The column that names each post. Without it, or where it is empty, posts of one source are the same where text,
    time and topic are; those without a time, where they also come from a file of the same name."""
    topic_field: str | None = Field(None, min_length=1)
    """A column with a post's topic, in place of those that its text names."""
    topics: list[Literal["handles", "hashtags", "cashtags"]] = Field(["handles", "hashtags", "cashtags"], min_length=1)
    """What in a text names a topic: @handles, #hashtags, $cashtags. A post counts for each of its topics."""
    model: str = Field("models:/gpt2-sentiment@champion", min_length=1)
    """The registered model that scores: models:/NAME@ALIAS or models:/NAME/VERSION."""
    negative: str = Field("negative", min_length=1)
    """The model's label whose share is watched."""
    abstain_below: float = Field(0.0, ge=0, le=1)
    """A post of which the model is less sure than this is undecided: it counts neither as negative nor as not, and the
    page says how many there are. The model's report says what each value brings; 0 decides all. Scores are kept as they
    are, and another value counts all of them anew."""
    window: Literal["hour", "day"] = "hour"
    """Posts are counted by the hour or by the day (UTC)."""
    min_posts: int = Field(30, ge=5, le=1_000_000)
    """A window of a topic with fewer decided posts is not judged (unit: posts)."""
    false_alarms: float = Field(1.0, gt=0, le=100)
    """Alerts per topic and year that chance alone may raise, at most."""
    min_ratio: float = Field(1.25, ge=1, le=10)
    """No alert where the share is less than so many times the usual."""
    drift_posts: int = Field(2000, ge=200, le=1_000_000)
    """The latest posts that are compared with the training data (unit: posts); with fewer than 200 nothing is."""
    drift_threshold: float = Field(0.25, gt=0, le=10)
    """Population stability index above which something has drifted: 0.1 is called moderate, 0.25 large."""
    drift_again_days: float = operational(7.0, gt=0, le=3650)
    """Drift is told when it begins, and again after so many days while it lasts (unit: days)."""
    page_topics: int = operational(12, ge=1, le=100)
    """Topics with a curve on the page: those with an alert, then the largest."""
    batch_posts: int = operational(2000, ge=1, le=1_000_000)
    """Posts that are scored and kept at a time: a killed run loses at most so many (unit: posts)."""
    compact_above: int = operational(200, ge=1, le=1_000_000)
    """Scored batches of past days beyond which they become one file for each month and version of the model."""

    @model_validator(mode="after")
    def _distinct(self):
        fields = [f for f in (self.text_field, self.time_field, self.topic_field) if f is not None]
        if len(set(fields)) < len(fields):
            raise ValueError(f"text_field, time_field and topic_field are {fields}; name a column of its own for each")
        return self

    @property
    def rule(self) -> Rule:
        """When a topic surges."""
        return Rule(self.window, self.false_alarms, self.min_posts, self.min_ratio)
