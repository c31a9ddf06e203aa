"""HTML and Markdown for people; it imports nothing of the rest.

* `html.py`: pages from templates, with every value escaped.
* `markdown.py`: tables, bullets, escapes and figures as text.
* `templates/`: a file for each page; `base.html.j2` has the frame, `macros.html.j2` tables, cards and figures,
  `style.css` the one style sheet, light and dark.
"""
