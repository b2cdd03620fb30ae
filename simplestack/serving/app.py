"""The Bento as an ASGI app, for gunicorn.

A photo's way through it: telemetry.py logs the request, and gate.py reads its body. decoder_pool.py
sends that to a process, decoder.py, where body.py takes the picture out of a form or JSON and
images.py turns it into 224×224 pixels. The gate forwards these to BentoML, which calls service.py;
inference.py runs the ONNX file on them and words the answer.
"""

import os
from typing import Any

import bentoml


def app() -> Any:
    """Load the Bento in the folder BENTO_PATH; return its ASGI app."""
    service: bentoml.Service[Any] = bentoml.load(os.environ["BENTO_PATH"])
    return service.to_asgi()
