"""Pictures that people show to each other: contact sheets, heat-maps, animations, reports."""

from pivotal.figures.animation import animation_extension, save_animation
from pivotal.figures.maps import colour_map, heat_map, latents_as_picture
from pivotal.figures.report import Comparison, html_report, save_report
from pivotal.figures.sheet import Panel, Row, contact_sheet
from pivotal.figures.table import Table

__all__ = [
    "Panel",
    "Row",
    "Table",
    "contact_sheet",
    "heat_map",
    "latents_as_picture",
    "colour_map",
    "save_animation",
    "animation_extension",
    "Comparison",
    "html_report",
    "save_report",
]
