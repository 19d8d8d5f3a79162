"""An HTTP server that classifies uploaded images: see docs/serving.md."""

import os
from pathlib import Path
from threading import Lock

from fastapi import FastAPI, HTTPException, UploadFile

from advisor.deploy.predict import load_classifier
from strategies.core.devices import make_device, predict_precision
from strategies.core.errors import DataError
from strategies.data.decoding import decode_image

app = FastAPI(title="Image classifier")
classifier = load_classifier(Path(os.environ["CLASSIFIER"]), make_device("auto"))
precision = predict_precision(classifier.device)
one_at_a_time = Lock()


@app.post("/predict")
def predict(image: UploadFile) -> dict[str, str | float]:
    """Return the most probable class of an image and its probability."""
    try:
        decoded = decode_image(image.file.read())
    except DataError as error:
        raise HTTPException(422, f"{image.filename} is no readable image: {error}") from error
    with one_at_a_time:  # a forward pass uses all cores, or the whole GPU
        (probabilities,) = classifier.predict_proba([decoded], precision=precision)
    best = int(probabilities.argmax())
    return {"class": classifier.classes[best], "probability": float(probabilities[best])}
