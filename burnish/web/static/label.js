// The labelling page: keyboard, time on task, and saves that are retried with the same key until the server replies.
(() => {
  const task = document.getElementById("task"), notice = document.getElementById("notice");
  const guidelines = document.getElementById("guidelines");
  const base = task.dataset.base;
  const WAITS = [500, 1000, 2000, 4000, 8000];
  let pending = null, tries = 0, shownAt = 0, watched = 0, picked = [], tied = false;

  const form = () => document.getElementById("answer");
  const tell = (words) => { notice.textContent = words; };
  const ordinal = (n) => ["1st", "2nd", "3rd", "4th", "5th", "6th"][n];

  // Time on task: counted only while the page is visible.
  const running = () => (shownAt && !document.hidden ? performance.now() - shownAt : 0);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { watched += shownAt ? performance.now() - shownAt : 0; shownAt = 0; } else shownAt = performance.now();
  });

  const newKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
  const send = () => {
    task.classList.add("sending");
    htmx.ajax(pending.method, base + pending.path, { target: "#task", swap: "innerHTML", values: pending.values });
  };
  const request = (path, values, method = "POST") => {
    if (pending) return;
    pending = { path, values, method };
    tries = 0;
    send();
  };
  const again = (why) => {
    const wait = WAITS[Math.min(tries++, WAITS.length - 1)] * (0.5 + Math.random());  // jitter, so that clients do not retry together
    tell(`${why} Trying again.`);
    setTimeout(send, wait);
  };
  const save = (answer) => {
    if (!form()) return;
    const seconds = (watched + running()) / 1000;
    request("/save", {
      task: form().dataset.task, key: newKey(), guidelines: form().dataset.guidelines,
      reason: form().elements.reason.value, seconds: seconds.toFixed(1), ...answer,
    });
  };

  // While an answer is not saved, the browser asks before it closes the tab.
  window.addEventListener("beforeunload", (event) => {
    if (pending && pending.path === "/save") event.preventDefault();
  });

  document.body.addEventListener("htmx:sendError", () => pending && again("The server does not answer."));
  document.body.addEventListener("htmx:timeout", () => pending && again("The server is slow."));
  document.body.addEventListener("htmx:responseError", (event) => {
    const { status, responseText } = event.detail.xhr;
    if (!pending) return status === 401 ? location.reload() : undefined;
    if (status >= 500 || status === 429) return again("It is not saved yet.");
    pending = null;
    task.classList.remove("sending");
    if (status === 401) return location.reload();
    const words = new DOMParser().parseFromString(responseText, "text/html").body.textContent.trim();
    tell(words);
    if (status === 409 || status === 404) request("/next", {}, "GET");
  });
  document.body.addEventListener("htmx:afterSwap", (event) => {
    if (event.detail.target !== task) return;
    if (pending && pending.path !== "/next") tell("");
    pending = null;
    task.classList.remove("sending");
    shownAt = document.hidden ? 0 : performance.now();
    watched = 0; picked = []; tied = false;
    const feedback = task.querySelector("[data-feedback]");
    if (feedback) feedback.setAttribute("role", "status");
    const heading = task.querySelector("h2");
    if (heading) { heading.focus({ preventScroll: true }); window.scrollTo(0, 0); }
  });

  // A ranking: a list of tiers, the best first, each a list of answers.
  const draw = () => {
    for (const article of form().querySelectorAll("[data-answer]")) {
      const at = picked.findIndex((tier) => tier.includes(+article.dataset.answer));
      article.classList.toggle("placed", at >= 0);
      article.querySelector("[data-place]").textContent = at >= 0 ? ordinal(at) : "";
    }
    const words = picked.map((tier, at) => `${ordinal(at)}: ${tier.map((i) => "ABCDEF"[i]).join(" = ")}`);
    const left = form().dataset.n - picked.flat().length;
    const next = left ? (tied ? "Which answer ties with the last?" : picked.length ? "Which comes next?" : "Press the number of the best answer.") : "Enter saves this order.";
    form().querySelector("[data-order]").textContent = [...words, next].join(" · ");
    form().querySelector("[data-act=rank]").disabled = left > 0;
  };
  const pick = (i) => {
    if (i >= form().dataset.n || picked.flat().includes(i)) return;
    if (tied && picked.length) picked.at(-1).push(i); else picked.push([i]);
    tied = false;
    draw();
  };
  const acts = {
    undo: () => request("/undo", {}),
    finish: () => request("/finish", {}),
    tie: () => { tied = picked.length > 0 && !tied; draw(); },
    back: () => {
      if (tied) tied = false;
      else if (picked.length) { picked.at(-1).pop(); if (!picked.at(-1).length) picked.pop(); }
      draw();
    },
    rank: () => {
      const n = +form().dataset.n;
      if (picked.flat().length < n) return;
      const order = Array.from({ length: n }, (_, i) => picked.findIndex((tier) => tier.includes(i)));
      save({ order: order.join(",") });
    },
  };

  task.addEventListener("submit", (event) => event.preventDefault());
  task.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button || button.disabled) return;
    if (button.dataset.choice) save({ choice: button.dataset.choice });
    else if (button.dataset.pick) pick(+button.dataset.pick);
    else if (button.dataset.act) acts[button.dataset.act]();
  });
  document.addEventListener("keydown", (event) => {
    if (pending) return;  // ignore keys while a question is loading
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const writing = event.target.matches("textarea, input, select");
    if (writing) { if (event.key === "Escape") event.target.blur(); return; }
    if (event.key === "g") return void (guidelines.open = !guidelines.open);
    if (event.key === "u") return acts.undo();
    if (!form()) return;
    const rank = form().dataset.kind === "rank", digit = "123456789".indexOf(event.key);
    const onButton = event.target.matches("button, a, summary");
    if (event.key === "r") { event.preventDefault(); form().elements.reason.focus(); }
    else if (event.key === "s") save({ choice: "skip" });
    else if (event.key === "f") save({ choice: "flag" });
    else if (rank && digit >= 0) pick(digit);
    else if (rank && event.key === "=") acts.tie();
    else if (rank && event.key === "Backspace") acts.back();
    else if (rank && event.key === "Enter" && !onButton) acts.rank();
    else if (!rank && event.key === "b") save({ choice: "bad" });
    else if (!rank && digit >= 0) form().querySelectorAll(".scale [data-choice]")[digit]?.click();
  });

  // Request the first question like any other, with retries until it arrives.
  document.addEventListener("DOMContentLoaded", () => request("/next", {}, "GET"));

  // An annotator who has not seen this edition of the guidelines reads it first.
  const seen = `guidelines ${base}`;
  if (localStorage.getItem(seen) !== guidelines.dataset.edition) guidelines.open = true;
  localStorage.setItem(seen, guidelines.dataset.edition);
})();
