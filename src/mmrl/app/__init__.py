"""`mmrl app`: a page on which people who do not program teach a classifier from photos, try it, and take it away.

`uploads` reads what is uploaded, `jobs` trains one after another, `session` is one visitor's state, `sessions` all of
them; none knows Gradio. `views` makes the parts of the page that show something, `page` wires them together, `serve` runs it.
"""
