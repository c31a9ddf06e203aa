"""HTML and Markdown for people. It imports no other room.

html.py      pages from templates, with every value escaped
markdown.py  tables, bullets, escapes and figures as text
templates/   one file per page; shared: `base.html.j2`, `macros.html.j2`, `style.css` (light and dark)
"""
