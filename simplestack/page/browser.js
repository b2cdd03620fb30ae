"use strict";
// The network runs in this browser: no photo leaves it.
const WEIGHT = 0.3; // of the latest frame in the camera's moving average
const PAUSE = 100; // ms between the camera's frames, in which the page reacts
const CAMERA_ERRORS = {
  NotAllowedError: "The browser doesn't let this page use the camera: allow it in the settings beside the page's address.",
  NotFoundError: "This device has no camera.",
  NotReadableError: "The camera doesn't start: close other programs that use it.",
};
const classifier = import("./classifier.js");
const ask = async (file) => (await classifier).classify(file);

async function showPrograms() {
  $("lead").append(" It runs in this browser: nothing is uploaded.");
  $("links").innerHTML = 'For programs: <a href="model.onnx">ONNX file</a> · <a href="labels.txt">labels</a> · <a href="model.json">model metadata</a>';
  offerCamera();
  $("status").textContent = "Loading the network (26 MB) …";
  const error = await (await classifier).load().then(() => "", (error) => error.message);
  $("status").textContent = error;
  if (!error) await keep(); // only now, so that the browser needn't download the files twice
}

/** Keep this version of the page for visits without a network; announce it, and a newer one. */
async function keep() {
  const news = make("p", { className: "quiet", id: "news" });
  news.setAttribute("role", "status");
  $("status").after(news);
  // Not in Firefox's private windows, nor without https.
  const kept = await navigator.serviceWorker?.register("sw.js").catch(() => null);
  const isFirst = !navigator.serviceWorker?.controller;
  const tell = () => {
    if (kept.active && kept.waiting) news.textContent = "A newer version is here: close all tabs of this page, and the next visit gets it.";
    else if (kept.active && isFirst) news.textContent = "This page opens without a network from now on.";
  };
  const follow = () => { kept.installing?.addEventListener("statechange", tell); tell(); };
  kept?.addEventListener("updatefound", follow);
  if (kept) follow();
}

/** Add a button that starts and stops the live camera; Escape and leaving the page stop it, too. */
function offerCamera() {
  const button = make("button", { type: "button", className: "button", textContent: "Live camera" });
  let on; // an AbortController, while the camera is on
  const stop = () => {
    if (!on) return;
    on.abort();
    on = undefined;
    button.textContent = "Live camera";
    $("status").textContent = "The camera is off.";
  };
  button.onclick = async () => {
    if (on) return stop();
    const { signal } = on = new AbortController();
    button.textContent = "Stop the camera";
    const error = await watch(signal, stop).catch((error) => error);
    if (signal.aborted) return;
    stop();
    if (error) $("status").textContent = CAMERA_ERRORS[error.name] ?? error.message;
  };
  document.querySelector(".buttons").append(button);
  document.addEventListener("keydown", ({ key }) => { if (key === "Escape") stop(); });
  document.addEventListener("visibilitychange", () => { if (document.hidden) stop(); });
}

/** Show the camera and the answers to its frames, one frame at a time, until `signal` or the camera ends it. */
async function watch(signal, stop) {
  if (!navigator.mediaDevices) throw new Error("Only pages with https can use the camera.");
  const { classify, load } = await classifier;
  const { metadata } = await load();
  const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  const video = make("video", { muted: true, playsInline: true, srcObject: stream, ariaLabel: "Live camera" });
  const figure = make("figure", {}, video), text = make("div");
  const button = make("button", { type: "button", className: "button", textContent: "Stop", onclick: stop });
  const card = make("section", { className: "card" }, figure, make("div", {}, text, button));
  const end = () => {
    stream.getTracks().forEach((track) => track.stop());
    card.remove();
  };
  signal.addEventListener("abort", end);
  $("results").prepend(card);
  try {
    await video.play();
    card.scrollIntoView({ block: "nearest" });
    for (let mean, said; stream.active;) {
      const answer = await classify(await createImageBitmap(video));
      if (signal.aborted) return;
      mean = average(mean ?? answer, answer);
      const [label] = Object.entries(mean.probabilities).reduce((a, b) => (b[1] > a[1] ? b : a));
      const unlike = mean.similarity < metadata.unlike.threshold; // null, without a threshold, counts as 0
      const lines = unlike ? [UNLIKE, `If it must be one: ${label}`] : [label];
      text.classList.toggle("unlike", unlike);
      text.replaceChildren(make("h2", { textContent: lines[0] }),
        ...lines.slice(1).map((line) => make("p", { textContent: line })), bars(mean.probabilities));
      const size = { naturalWidth: video.videoWidth, naturalHeight: video.videoHeight };
      figure.querySelector("canvas")?.remove();
      figure.prepend(heat(answer.map, size, false));
      if (lines.join(" ") !== said) $("status").textContent = said = lines.join(" "); // else it would be read out each time
      await new Promise((done) => setTimeout(done, PAUSE));
    }
  } finally {
    end();
  }
}

/** Return the exponential moving average of the probabilities and the similarity. */
function average(mean, { probabilities, similarity }) {
  const mix = (before, now) => before + WEIGHT * (now - before);
  const mixed = Object.entries(probabilities).map(([label, p]) => [label, mix(mean.probabilities[label], p)]);
  return { probabilities: Object.fromEntries(mixed), similarity: mix(mean.similarity, similarity) };
}
