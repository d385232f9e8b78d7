"""Show a person everything: the labelling page, the admin pages, sign-in, images.

The only folder that imports gradio or fastapi (besides app.py). No page imports torch: what needs it runs as a
process of its own through runs. What lives (label, train, runs, models) is a JavaScript module with JSON routes; what
is a form and a status is Gradio, with `ui.run_panel` for its runs and templates for its HTML.
"""
