"""Pictures that people show to each other: contact sheets, word heat-maps, latents as pictures."""

from pivotal.figures.maps import colour_map, heat_map, latents_as_picture
from pivotal.figures.sheet import Panel, Row, Table, before_after, contact_sheet

__all__ = [
    "Panel",
    "Row",
    "Table",
    "contact_sheet",
    "before_after",
    "heat_map",
    "latents_as_picture",
    "colour_map",
]
