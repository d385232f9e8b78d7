"""List the pages in their groups, and render the links to them."""

from __future__ import annotations

from markupsafe import Markup

from ui.html import render

FIRST = "Overview"
"""The page at /admin/ itself; every other page is at /admin/<its name in small letters>."""
LABEL = "Label"
GROUPS: dict[str, tuple[str, ...]] = {
    "Collect": ("Data", "Restore", LABEL, "People", "Studies", "Project"),
    "Learn": ("Metrics", "Auto-annotate", "Train", "Runs", "Models"),
    "Results": ("Report", "Export"),
}
"""The other pages, in the order of the loop."""


def address_of(page: str) -> str:
    """The path of a page below the server's root path."""
    return {FIRST: "/admin/", LABEL: "/"}.get(page, f"/admin/{page.lower()}")


def menu_html(root_path: str, current: str, *, unfolded: bool = False) -> Markup:
    """The links to all pages in a menu.

    Args:
        current: the page that they stand on.
    """
    pages = {"first": FIRST, "groups": GROUPS, "current": current, "address_of": address_of}
    return render("menu.html", root=root_path, unfolded=unfolded, **pages)


def header_html(root_path: str, current: str) -> Markup:
    """The header of an admin page; static/common/header.js fills in the project's name and who is signed in."""
    return render("header.html", menu=menu_html(root_path, current, unfolded=True), root=root_path)
