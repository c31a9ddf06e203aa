"""The settings of the sentiment monitor: its sources, its windows, and when it raises an alert."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gpt2.data.config import FileForm
from gpt2.monitoring.alerts import Rule
from gpt2.settings import operational


class MonitorConfig(FileForm):
    """New posts, scored by the champion and counted by topic and time."""

    name: str = Field("posts", pattern="^[a-z0-9][a-z0-9-]{0,40}$")
    """The monitor's name. Monitors of different names keep separate records of the posts that they have read."""
    sources: list[str] = Field(["inbox"], min_length=1)
    """Sources of posts: folders, files, globs or fsspec URLs of .jsonl, .csv, .tsv or .parquet, plain, .gz or .zst.
    Files must be written whole; only a .jsonl may grow line by line."""
    text_field: str = Field("text", min_length=1)
    """The column of the texts."""
    time_field: str | None = Field(None, min_length=1)
    """The column of the times: ISO 8601, or seconds or milliseconds since 1970; UTC if there is no time zone. A row
    more than a day in the future is rejected. Without a column, a post's time is that of the run which reads it."""
    id_field: str | None = Field(None, min_length=1)
    """The column of the post ids. Without an id, posts of one source are equal if their text, time and topic are. Posts
    without a time are equal only if they also come from a file of the same name."""
    topic_field: str | None = Field(None, min_length=1)
    """The column of a post's topic; without it, the topics are those named in the text."""
    topics: list[Literal["handles", "hashtags", "cashtags"]] = Field(["handles", "hashtags", "cashtags"], min_length=1)
    """The kinds of topics in texts: @handles, #hashtags, $cashtags. A post counts for each of its topics."""
    model: str = Field("models:/gpt2-sentiment@champion", min_length=1)
    """The registered model that scores posts: models:/NAME@ALIAS or models:/NAME/VERSION."""
    negative: str = Field("negative", min_length=1)
    """The model's label whose share is watched."""
    abstain_below: float = Field(0.0, ge=0, le=1)
    """Confidence (0 to 1) below which a post is undecided: it counts neither as negative nor as not negative. The page
    shows how many posts are undecided. The model's report shows the accuracy at each value; 0 decides all posts. Scores
    are kept, so another value applies to all earlier posts too."""
    window: Literal["hour", "day"] = "hour"
    """Posts are counted by the hour or by the day (UTC)."""
    min_posts: int = Field(30, ge=5, le=1_000_000)
    """Fewest decided posts of a window that is judged, per topic (unit: posts)."""
    false_alarms: float = Field(1.0, gt=0, le=100)
    """Largest expected number of alerts by chance alone (unit: alerts per topic and year)."""
    min_ratio: float = Field(1.25, ge=1, le=10)
    """Smallest ratio of a window's share to the usual share that raises an alert."""
    drift_posts: int = Field(2000, ge=200, le=1_000_000)
    """Number of latest posts compared with the training data (unit: posts); fewer than 200 are not compared."""
    drift_threshold: float = Field(0.25, gt=0, le=10)
    """Population stability index above which a measure has drifted: 0.1 is called moderate, 0.25 large."""
    drift_again_days: float = operational(7.0, gt=0, le=3650)
    """Drift is reported when it begins, and again at this interval while it lasts (unit: days)."""
    page_topics: int = operational(12, ge=1, le=100)
    """Number of topics with a curve on the page: those with an alert, then the largest."""
    batch_posts: int = operational(2000, ge=1, le=1_000_000)
    """Posts scored and stored at a time; a killed run loses at most this many (unit: posts)."""
    compact_above: int = operational(200, ge=1, le=1_000_000)
    """Number of scored batches of past days above which they are merged into one file per month and model version."""

    @model_validator(mode="after")
    def _distinct(self):
        fields = [f for f in (self.text_field, self.time_field, self.topic_field) if f is not None]
        if len(set(fields)) < len(fields):
            raise ValueError(f"text_field, time_field and topic_field are {fields}; name a column of its own for each")
        return self

    @property
    def rule(self) -> Rule:
        """Return the parameters of the rule for surges."""
        return Rule(self.window, self.false_alarms, self.min_posts, self.min_ratio)
