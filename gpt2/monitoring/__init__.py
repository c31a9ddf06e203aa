"""Sentiment over time: index, alerts, drift, and the page.

alerts.py   the surge rule of a topic; drift of posts from the training data
config.py   `MonitorConfig`: inputs, counting, thresholds of alerts
demo.py     the sample posts replayed over 60 days with one planted surge
history.py  what was counted before, as partial sums; posts still to score
index.py    the sentiment index: negative share by topic and window, with intervals; alerts
page.py     the monitor's page, HTML and Markdown; a topic's curve as SVG
posts.py    posts of the inbox: text, time, topic, identity; bad rows with reasons
scored.py   the scored batches: current ones, their contents, merging by month
"""
