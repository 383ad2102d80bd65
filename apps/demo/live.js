// The live part of the page: one socket brings pictures and what is remembered; text from it is set
// as text, HTML comes escaped from the server. No state is kept anywhere but here.
(() => {
  const at = (id) => document.getElementById(id);
  const show = (id, text) => { const place = at(id); if (place) place.textContent = text; };
  const page = { frames: 0, shownAt: [], state: null, connected: false, token: "" };
  let live = null, ended = false, camera = null;

  const address = (what) => {
    const url = new URL(`visit/${page.token}/${what}`, document.baseURI);
    if (what === "live" || what === "webcam")
      url.protocol = url.protocol.replace("http", "ws");
    return url;
  };

  // ---------------------------------------------------------------- pictures

  async function picture(data) {
    const canvas = at("live");
    if (!canvas) return;
    const image = await createImageBitmap(new Blob([data], { type: "image/jpeg" }));
    if (canvas.width !== image.width || canvas.height !== image.height) {
      canvas.width = image.width;
      canvas.height = image.height;
    }
    canvas.getContext("2d").drawImage(image, 0, 0);
    image.close();
    page.frames += 1;
    const now = performance.now();
    page.shownAt = [...page.shownAt.filter((time) => now - time < 2000), now];
  }

  function fps() {
    const times = page.shownAt.filter((time) => performance.now() - time < 2000);
    return times.length > 2 ? (1000 * (times.length - 1)) / (times.at(-1) - times[0]) : 0;
  }

  function connect() {
    live = new WebSocket(address("live"));
    live.binaryType = "arraybuffer";
    live.onopen = () => { page.connected = true; };
    live.onmessage = async (event) => {
      if (typeof event.data === "string") return remember(JSON.parse(event.data));
      try { await picture(event.data); } finally {
        if (live.readyState === WebSocket.OPEN) live.send("shown");
      }
    };
    live.onclose = (event) => {
      page.connected = false;
      if (event.code === 4404) {
        ended = true;
        curtain("This visit has ended. Load the page again.");
      } else if (!ended) {
        curtain("The line is broken. Trying again…");
        setTimeout(connect, 1500);
      }
    };
  }

  // ---------------------------------------------------------------- what is remembered

  const WORDS = {
    playing: "", waiting: "waiting for the first picture", paused: "paused",
    ended: "the end", idle: "nothing to watch",
  };

  function remember(state) {
    if (page.state && page.state.number !== state.number) at("sync")?.click();  // another memory
    page.state = state;
    for (const place of document.querySelectorAll("[data-fact]"))
      place.textContent = state.facts[place.dataset.fact] ?? "";
    const now = state.live;
    at("share").style.width = `${100 * state.facts.share}%`;
    show("scenes", state.facts.scenes ? ` and ${state.facts.scenes} scenes` : "");
    at("stage").dataset.status = now.status;
    for (const place of document.querySelectorAll("[data-live=said]"))
      place.textContent = [now.source, now.time, WORDS[now.status]].filter(Boolean).join(" · ");
    for (const place of document.querySelectorAll("[data-live=people]"))
      place.textContent = now.people ? `${now.people} ${now.people > 1 ? "people" : "person"} · ` : "";
    show("shown-fps", `${fps().toFixed(0)} fps`);
    const still = { idle: "Pick something to watch.", waiting: "Waiting for the first picture…" };
    curtain(now.problem || still[now.status] || "");
    const pause = at("pause");
    if (pause) pause.textContent = now.status === "paused" ? "Go on" : "Pause";
    if (state.moments) timeline(state.moments, state.earlier);
    if (state.map !== undefined) at("map").innerHTML = state.map;
  }

  // Cards are changed one by one: a thumbnail that is there already is not loaded again.
  function timeline(cards, earlier) {
    const list = at("timeline");
    const atEnd = list.scrollLeft + list.clientWidth > list.scrollWidth - 40;
    const held = new Map([...list.querySelectorAll("[data-card]")].map((card) => [card.dataset.card, card]));
    const wanted = new Set(cards.map(([key]) => key));
    let before = list.scrollWidth;
    for (const [key, card] of held) if (!wanted.has(key)) card.remove();
    let place = null;
    for (const [key, html] of cards) {
      let card = held.get(key);
      if (!card) {
        card = Object.assign(document.createElement("div"), { className: "card" });
        card.dataset.card = key;
      }
      if (card.told !== html) card.innerHTML = card.told = html;
      const next = place ? place.nextSibling : list.firstChild;
      if (next !== card) list.insertBefore(card, next);
      place = card;
    }
    list.dataset.earlier = earlier;
    if (atEnd || list.scrollLeft === 0 && before <= list.clientWidth) list.scrollLeft = list.scrollWidth;
  }

  // ---------------------------------------------------------------- a moment, large

  function open(button) {
    const { key, title, when, more } = button.dataset;
    const small = button.querySelector("img");
    at("viewer-picture").src = small ? small.src : `visit/${page.token}/moment/${key}.jpg?${page.state.number}.${page.frames}`;
    show("viewer-title", title ?? button.querySelector("title")?.textContent ?? "");
    show("viewer-when", when ?? "");
    show("viewer-more", more ?? "");
    at("viewer").showModal();
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-key]");
    if (button) return open(button);
    if (event.target.closest("#viewer-close") || event.target.id === "viewer") at("viewer").close();
    if (event.target.closest("#webcam-button")) camera ? stopCamera() : startCamera();
  });

  // ---------------------------------------------------------------- files and the webcam

  function say(text) {
    const place = at("notice");
    if (!place) return;
    place.textContent = text ?? "";
    place.classList.toggle("on", Boolean(text));
    clearTimeout(say.timer);
    if (text) say.timer = setTimeout(() => place.classList.remove("on"), 7000);
  }

  async function hand(file, what) {
    say(`Receiving ${file.name}…`);
    try {
      const reply = await fetch(address(what), { method: "PUT", body: file });
      const told = await reply.json().catch(() => ({}));
      say(told.problem || (reply.ok ? "" : "That did not work."));
    } catch { say("The file could not be sent."); }
  }

  document.addEventListener("change", (event) => {
    const kind = { "clip-file": "clip", "memory-file": "memory" }[event.target.id];
    if (!kind || !event.target.files.length) return;
    hand(event.target.files[0], kind);
    event.target.value = "";
  });
  for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => {
    if (!event.target.closest?.(".drop")) return;
    event.preventDefault();
    if (name === "drop" && event.dataTransfer.files.length) hand(event.dataTransfer.files[0], "clip");
  });

  async function startCamera() {
    const said = at("webcam-said");
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
      const video = Object.assign(document.createElement("video"), { srcObject: stream, muted: true, playsInline: true });
      await video.play();
      const canvas = document.createElement("canvas");
      const socket = new WebSocket(address("webcam"));
      camera = { stream, socket };
      let last = 0;
      socket.onmessage = () => {
        const wait = Math.max(0, last + 66 - performance.now());
        setTimeout(() => {
          if (socket.readyState !== WebSocket.OPEN) return;
          last = performance.now();
          const scale = Math.min(1, 640 / Math.max(video.videoWidth, video.videoHeight));
          canvas.width = Math.round(video.videoWidth * scale);
          canvas.height = Math.round(video.videoHeight * scale);
          canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
          canvas.toBlob((blob) => socket.readyState === WebSocket.OPEN && socket.send(blob), "image/jpeg", 0.8);
        }, wait);
      };
      socket.onclose = stopCamera;
      show("webcam-button", "Stop the webcam");
    } catch (error) {
      said.textContent = window.isSecureContext
        ? `The browser gives no webcam (${error.name}).`
        : "A browser gives a webcam to https:// or localhost pages alone.";
    }
  }

  function stopCamera() {
    if (!camera) return;
    const { stream, socket } = camera;
    camera = null;
    stream.getTracks().forEach((track) => track.stop());
    socket.close();
    show("webcam-button", "Start the webcam");
  }

  function source(name) {
    document.body.dataset.source = name;
    if (name === "Webcam") startCamera(); else stopCamera();
  }

  function curtain(text) {
    show("curtain", text);
    at("curtain")?.classList.toggle("on", Boolean(text));
  }

  function begin(token) {
    page.token = token;
    if (!token) return curtain("Every seat is taken at the moment. Try again in a minute.");
    at("memory-save").href = `visit/${token}/memory`;
    connect();
    const chat = at("chat");
    new MutationObserver(() => { chat.scrollTop = chat.scrollHeight; })
      .observe(chat, { childList: true, subtree: true, characterData: true });
  }

  // A browser may keep a page that was left, and its socket, for the way back: say that it is over.
  addEventListener("pagehide", () => { ended = true; stopCamera(); live?.close(4001); });
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

  window.vismem = { page, fps, say, source, open: begin };
})();
