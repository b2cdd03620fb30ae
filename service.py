"""The BentoML service: an image in, its label and probabilities out.

    bentoml serve NAME:latest
    curl -X POST http://localhost:5000/predict -H "Content-Type: image/*" --data-binary @image.jpg

`python saveToBento.py` packs it with the model. It must not import torch, which isn't in the image.
"""

import operator
import os
import sys
from functools import cache
from typing import Annotated, Any

# Turns BentoML's telemetry off, so before its import.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")

import bentoml
import numpy as np
from bentoml.validators import ContentType
from PIL.Image import Image
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware

from simplestack.serving import images, settings, site
from simplestack.serving.cgroup import cores
from simplestack.serving.gate import Gate
from simplestack.serving.inference import OnnxModel, answer, rounded
from simplestack.serving.responses import HANDLERS, to_json
from simplestack.serving.telemetry import Telemetry, timed

SETTINGS = settings.checked()
MODEL = bentoml.models.BentoModel("resnet18:latest")
JSON = ContentType("application/json")  # of the text that the API returns
# One worker keeps all cores busy, as inference releases the GIL. Each thread takes 10 MB, so
# several workers share them.
THREADS = min(4, max(1, 2 * cores() // SETTINGS.web_concurrency))


@bentoml.service(
    name="photo_classifier",  # the Bento is named after its classes
    threads=THREADS,
    http={"port": SETTINGS.port},  # of `bentoml serve` without --port
    traffic={"timeout": SETTINGS.timeout + 1},  # so that the gate answers first
    image=bentoml.images.Image(
        base_image=f"python:{sys.version_info.major}.{sys.version_info.minor}-slim",
        distro="",  # otherwise BentoML installs a compiler and git
        # On Debian 13, only its owner can enter it; Heroku runs the image as another user.
        commands=["chmod 755 /home/bentoml"],
    ),
    envs=[
        # By default, glibc keeps 90 MB that only loading the model needs. With lower thresholds, it
        # returns memory that the next picture needs again.
        {"name": "MALLOC_TRIM_THRESHOLD_", "value": "16777216"},
        {"name": "MALLOC_MMAP_THRESHOLD_", "value": "4194304"},
        {"name": "MALLOC_ARENA_MAX", "value": "2"},
        # Turns ONNX Runtime's telemetry off.
        {"name": "ORT_DISABLE_TELEMETRY", "value": "1"},
    ],
    # Telemetry replaces BentoML's metrics, which grow with each unknown path in a request.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
)
class PhotoClassifier:
    """Classifies photos with a fine-tuned ResNet-18."""

    bento_model = MODEL  # BentoML packs the models that are attributes

    def __init__(self) -> None:
        self.model, self.metadata = load_model(), load_model().metadata
        # The first run is slow, as it allocates memory: now, before a client waits.
        self.model(np.zeros((1, images.CROP, images.CROP, 3), np.uint8))

    @bentoml.api
    def predict(self, image: Image, ctx: bentoml.Context) -> Annotated[str, JSON]:
        """Return the label of an image, 224×224 RGB, and the probability of each label.

        The answer also says whether the image is unlike the training photos. `?explain=1` adds the
        label's class activation map, 7×7 over the middle square of the picture; its mean is the
        label's logit.
        """
        return to_json(self.answer(image, ctx))

    @bentoml.api
    def classify(self, image: Image, ctx: bentoml.Context) -> Annotated[str, JSON]:
        """Return labels and their scores, the best first, as Hugging Face's clients expect."""
        probabilities = self.answer(image, ctx)["probabilities"].items()
        best = sorted(probabilities, key=operator.itemgetter(1), reverse=True)
        return to_json([{"label": label, "score": score} for label, score in best])

    def answer(self, image: Image, ctx: bentoml.Context) -> dict[str, Any]:
        """Run the model on a request's image, 224×224 RGB; return the answer, and log it."""
        request = ctx.request
        with timed(request.state, "inference"):
            outputs = logits, maps, _ = self.model(np.asarray(image)[None])
        result = answer(self.metadata, outputs, int(request.query_params.get("top_k", 0)))
        if request.query_params.get("explain") == "1":
            result["map"] = rounded(maps[0, logits[0].argmax()])
        if request.query_params.get("picture") == "1":
            result["picture"] = images.data_url(np.asarray(image))
        logged = ("label", "confidence", "similarity", "unlike")
        request.state.record |= {key: result[key] for key in logged}
        return result


@cache
def load_model() -> OnnxModel:
    """Load the model of this Bento, once."""
    return OnnxModel(MODEL.resolve().path_of("model.onnx"))


service: bentoml.Service[Any] = PhotoClassifier
service.add_asgi_middleware(Telemetry, paths=site.PATHS, probes=site.PROBES)
if SETTINGS.cors_origins:
    service.add_asgi_middleware(
        CORSMiddleware,
        allow_origins=SETTINGS.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type"],
    )
service.add_asgi_middleware(ExceptionMiddleware, handlers=HANDLERS)
service.add_asgi_middleware(site.known_paths_only, metrics=SETTINGS.metrics == "on")
service.add_asgi_middleware(Gate, settings=SETTINGS, cores=cores())
service.mount_asgi_app(site.site(lambda: load_model().metadata, token=bool(SETTINGS.api_token)))
