"""One function per verb: the only place where rooms are composed."""

DESCRIBER = "negah/describe-tiny"
"""The bundled model of pictures and words: what verbs that take words use unless another is named."""

IMAGINER = "negah/imagine-tiny"
"""The bundled text-to-image model: what verbs that draw use unless another is named."""
