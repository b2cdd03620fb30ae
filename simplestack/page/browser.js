"use strict";
// The network runs in this browser: no photo leaves it.
const classifier = import("./classifier.js");
const ask = async (file) => (await classifier).classify(file);

async function showPrograms() {
  $("lead").append(" It runs in this browser: nothing is uploaded.");
  $("links").innerHTML = 'For programs: <a href="model.onnx">ONNX file</a> · <a href="labels.txt">labels</a> · <a href="model.json">model metadata</a>';
  $("status").textContent = "Loading the network (26 MB) …";
  $("status").textContent = await (await classifier).load().then(() => "", (error) => error.message);
}
