"""Show a person everything: the labelling page, the admin pages, sign-in, images.

The only folder that imports gradio or fastapi (besides app.py). No page imports torch: what needs it runs as a
process of its own through runs.
"""
