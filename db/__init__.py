"""Keep durable state: tables, sessions, migrations and the image files behind them.

Owns every row and every image file of a data folder. Imports pixels alone of ours, nor torch, nor gradio.
Functions take `session` first and never commit; whoever opened the session commits once per action.
"""
