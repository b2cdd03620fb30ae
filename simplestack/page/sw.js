"use strict";
// The page without a network. publish.py writes the hash of each file, and the hash of them all, which names the
// cache. An update replaces the previous version only when all of its files are there and have their hashes, and
// no page is open that began with the previous one: the browser waits for that, and no page mixes versions.
const [VERSION, FILES] = VERSION_AND_FILES;
const ours = `${registration.scope} `; // other pages of this host may have caches, too
const current = ours + VERSION;

async function download() {
  const cache = await caches.open(current);
  await Promise.all(Object.entries(FILES).map(async ([path, integrity]) => {
    const response = await fetch(path, { cache: "no-cache", integrity });
    if (!response.ok) throw new Error(`${path}: ${response.status}`);
    await cache.put(path, new Response(response.body, response)); // a copy: browsers don't open redirected pages
  }));
}

// Without clients.claim(): Firefox 140 doesn't open a claimed page again where threads are allowed.
async function removeOthers() {
  const others = (await caches.keys()).filter((name) => name.startsWith(ours) && name !== current);
  await Promise.all(others.map((name) => caches.delete(name)));
}

async function answer(request) {
  const cache = await caches.open(current);
  return await cache.match(request, { ignoreSearch: true }) ?? fetch(request);
}

addEventListener("install", (event) => event.waitUntil(download()));
addEventListener("activate", (event) => event.waitUntil(removeOthers()));
addEventListener("fetch", (event) => event.respondWith(answer(event.request)));
