"""All images of a woman side by side, in a page of HTML that needs neither a kernel nor a network."""

from rsna_nb.viewer.page import show, show_examples
from rsna_nb.viewer.tables import images_of, with_lesions

__all__ = ["images_of", "show", "show_examples", "with_lesions"]
