#!/usr/bin/env bash
# Prefect: on the two nights when clocks change, schedules in that zone run early, leave an hour out, or stay an hour late.
#
# Guess:    "30 2 * * *" in Europe/Berlin runs once a night, at 02:30 or, where there is none, right after the gap; an
#           hourly cron runs every hour; an interval of a day keeps its time of day, as the documentation says of zones.
# Happens:  in spring the daily cron runs at 01:30, an hour before anything at 02:30 would be ready. In autumn an hourly
#           cron has 120 minutes between two runs. An interval of a day that meets the gap goes on at 03:30 for ever.
# Matters:  a nightly job that reads what another has written by two reads yesterday's once a year; an hourly figure has a
#           hole that looks like an outage; nothing is logged.
# Instead:  schedules in UTC, and jobs that do what is left to do, whenever they run.
#
# Seen (prefect 3.8.8, Python 3.11): daily 28 02:30, 29 01:30, 30 02:30; hourly 02:05+0200, 03:05+0100; interval 28 02:30,
# 29 03:30, 30 03:30.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet prefect==3.8.8 sqlalchemy==2.0.58 fastapi==0.150.0 2>"$work/pip.log" ||
    { cat "$work/pip.log"; exit 1; }
cd "$work"
export PREFECT_HOME="$work/home" PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=true
unset PREFECT_API_URL PREFECT_PROFILE
cat >try.py <<'PY'
import asyncio
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from prefect.server.schemas.schedules import CronSchedule, IntervalSchedule

ZONE = "Europe/Berlin"


def local(*words):
    return datetime(*words, tzinfo=ZoneInfo(ZONE))


def times(name, schedule, start, count):
    found = asyncio.run(schedule.get_dates(count, start=start))
    print(name, *(f"{t.astimezone(ZoneInfo(ZONE)):%d-%H:%M%z}" for t in found))


spring, autumn = local(2026, 3, 28), local(2026, 10, 25, 2)
times("daily", CronSchedule(cron="30 2 * * *", timezone=ZONE), spring, 3)
times("hourly", CronSchedule(cron="5 * * * *", timezone=ZONE), autumn, 2)
day = IntervalSchedule(interval=timedelta(days=1), anchor_date=local(2026, 3, 28, 2, 30), timezone=ZONE)
times("interval", day, spring, 3)
PY
"$work/venv/bin/python" try.py >seen 2>log || { cat log; exit 1; }
echo "versions:  $("$work/venv/bin/python" --version) $("$work/venv/bin/pip" list 2>/dev/null | awk '/^prefect / {printf "%s %s", $1, $2}')"
echo "guess:     once a night at 02:30 or after the gap; each hour; the same time of day"
echo "behaviour: an hour early; two hours between two runs; an hour late from then on"
sed "s/^/seen:      /" seen
[ "$(cat seen)" = 'daily 28-02:30+0100 29-01:30+0100 30-02:30+0200
hourly 25-02:05+0200 25-03:05+0100
interval 28-02:30+0100 29-03:30+0200 30-03:30+0200' ] || { echo "changed"; exit 1; }
