"""The BentoML service: an image in, its label and probabilities out.

    bentoml serve NAME:latest
    curl -X POST http://localhost:5000/predict -H "Content-Type: image/*" --data-binary @image.jpg

`python saveToBento.py` packs it with the model. It must not import torch, which isn't deployed.
"""

import operator
import os
import sys
from functools import cache
from typing import Annotated, Any

# Before BentoML is imported, which otherwise reports each start of a server to its makers.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")

import bentoml
import numpy as np
from bentoml.validators import ContentType
from PIL.Image import Image
from starlette.middleware.exceptions import ExceptionMiddleware

from simplestack.serving import images, settings, site
from simplestack.serving.cgroup import cores
from simplestack.serving.gate import Gate
from simplestack.serving.inference import OnnxModel, answer, rounded
from simplestack.serving.responses import HANDLERS, to_json
from simplestack.serving.telemetry import Telemetry, timed

MODEL = bentoml.models.BentoModel("resnet18:latest")
JSON = ContentType("application/json")  # of the text that the API returns
# One worker keeps all cores busy, as inference releases Python's lock. Each thread takes 10 MB.
THREADS = min(4, 2 * cores())


@bentoml.service(
    name="photo_classifier",  # the Bento is named after its classes
    threads=THREADS,
    http={"port": settings.Settings.port},
    traffic={"timeout": settings.checked().timeout + 1},  # so that the gate answers first
    image=bentoml.images.Image(
        base_image=f"python:{sys.version_info.major}.{sys.version_info.minor}-slim",
        distro="",  # otherwise BentoML installs a compiler and git
        # Debian 13 closes it to other users, and Heroku runs the image as one.
        commands=["chmod 755 /home/bentoml"],
    ),
    envs=[
        # By default, glibc keeps 90 MB that only loading the model needs. With lower thresholds, it
        # returns memory that the next picture needs again.
        {"name": "MALLOC_TRIM_THRESHOLD_", "value": "16777216"},
        {"name": "MALLOC_MMAP_THRESHOLD_", "value": "4194304"},
        {"name": "MALLOC_ARENA_MAX", "value": "2"},
        # ONNX Runtime otherwise reports each start to its makers.
        {"name": "ORT_DISABLE_TELEMETRY", "value": "1"},
    ],
    # Telemetry replaces BentoML's own, whose metrics grow with each path that somebody makes up.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
)
class PhotoClassifier:
    """Tells what a photo shows, with a fine-tuned ResNet-18."""

    bento_model = MODEL  # an attribute, so that BentoML packs it

    def __init__(self) -> None:
        self.model, self.metadata = packed_model(), packed_model().metadata
        # The first run allocates memory: not while a client waits.
        self.model(np.zeros((1, images.CROP, images.CROP, 3), np.uint8))

    @bentoml.api
    def predict(self, image: Image, ctx: bentoml.Context) -> Annotated[str, JSON]:
        """Return the label of an image, 224×224 RGB, and the probability of each label.

        Also whether the image is unlike those that the network was trained on.
        With `?explain=1` also the label's class activation map, 7×7 over the middle square of the
        picture: how much each place spoke for it. Its mean is the logit.
        """
        return to_json(self.answer(image, ctx))

    @bentoml.api
    def classify(self, image: Image, ctx: bentoml.Context) -> Annotated[str, JSON]:
        """Return labels and their scores, the best first, as Hugging Face's clients expect."""
        probabilities = self.answer(image, ctx)["probabilities"].items()
        best = sorted(probabilities, key=operator.itemgetter(1), reverse=True)
        return to_json([{"label": label, "score": score} for label, score in best])

    def answer(self, image: Image, ctx: bentoml.Context) -> dict[str, Any]:
        """Run the model on a request's image, 224×224 RGB; log and return the answer."""
        request = ctx.request
        with timed(request.state, "inference"):
            outputs = logits, maps, _ = self.model(np.asarray(image)[None])
        result = answer(self.metadata, outputs, int(request.query_params.get("top_k", 0)))
        if request.query_params.get("explain") == "1":
            result["map"] = rounded(maps[0, logits[0].argmax()])
        request.state.record |= {key: result[key] for key in ("label", "similarity", "unlike")}
        return result


@cache
def packed_model() -> OnnxModel:
    """Return the model of this Bento; its metadata is what the service tells of it."""
    return OnnxModel(MODEL.resolve().path_of("model.onnx"))


service: bentoml.Service[Any] = PhotoClassifier
service.add_asgi_middleware(Telemetry, paths=site.PATHS, probes=site.PROBES)
service.add_asgi_middleware(site.cors)
service.add_asgi_middleware(ExceptionMiddleware, handlers=HANDLERS)
service.add_asgi_middleware(site.closed)
service.add_asgi_middleware(Gate, cores=cores())
service.mount_asgi_app(site.site(lambda: packed_model().metadata))
