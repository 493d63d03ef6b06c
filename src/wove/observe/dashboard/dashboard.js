"use strict";
// Shows what the process says about its weaves. Every text reaches the document as text (textContent), never as HTML.

(() => {
  const $ = (id) => document.getElementById(id);
  const SIGNS = { waiting: "\u25cb", running: "\u25cf", done: "\u2713", failed: "\u2717", cancelled: "\u2013", skipped: "\u2013" };
  const LOOK_MS = 1000;
  const TIMELINE_EVERY = 3; // looks: it is the largest part

  let chosen = null; // the number that the user chose; otherwise the newest is shown
  let shown = null, finished = false, looks = 0;

  function element(name, text = "", children = []) {
    const made = document.createElement(name);
    made.textContent = text;
    made.append(...children);
    return made;
  }

  function duration(seconds) {
    if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${String(Math.floor(seconds) % 60).padStart(2, "0")} s`;
    return `${Math.floor(seconds / 3600)} h ${String(Math.floor(seconds / 60) % 60).padStart(2, "0")} min`;
  }

  const count = (value) => value.toLocaleString("en");
  const stateOf = (state) => `${SIGNS[state] || ""} ${state === "skipped" ? "not run" : state}`;

  async function ask(path, kind = "json") {
    const answer = await fetch(path, { cache: "no-store" });
    if (!answer.ok) throw new Error(`${answer.status}`);
    return answer[kind]();
  }

  function list(weaves) {
    const focused = document.activeElement && document.activeElement.dataset.number;
    $("weaves").replaceChildren(...weaves.map((weave) => {
      const line = `${stateOf(weave.state)} \u00b7 ${weave.done} of ${weave.tasks} tasks \u00b7 ${duration(weave.seconds)}`;
      const button = element("button", "", [element("span", `${weave.number}. ${weave.title}`), element("small", line)]);
      button.type = "button";
      button.className = weave.state;
      button.dataset.number = weave.number;
      button.setAttribute("aria-current", String(weave.number === shown));
      button.addEventListener("click", () => {
        chosen = weave.number;
        look();
      });
      return element("li", "", [button]);
    }));
    if (focused) document.querySelector(`button[data-number="${Number(focused)}"]`)?.focus();
  }

  function items(row) {
    const reported = row.progress ? [element("small", row.progress)] : [];
    if (!row.mapped) return reported;
    if (row.total === null) return [count(row.items), ...reported];
    const bar = element("progress");
    bar.max = Math.max(1, row.total);
    bar.value = row.items;
    return [bar, `${count(row.items)} of ${count(row.total)}`, ...reported];
  }

  function tasks(rows) {
    $("tasks").replaceChildren(...rows.map((row) => {
      const cells = [
        row.name, stateOf(row.state) + (row.state === "failed" && row.error ? `: ${row.error}` : ""), items(row),
        row.rate ? count(Number(row.rate.toPrecision(3))) : "", row.mapped && row.failed ? count(row.failed) : "",
        row.retries ? count(row.retries) : "", row.environment, row.seconds ? duration(row.seconds) : "",
      ];
      return element("tr", "", cells.map((cell) => (Array.isArray(cell) ? element("td", "", cell) : element("td", cell))));
    }));
  }

  function workers(weave) {
    $("busy").hidden = !weave.workers.length;
    $("workers").replaceChildren(...weave.workers.map((worker) => {
      const share = weave.seconds ? worker.busy / weave.seconds : 0;
      const cells = [
        worker.name, worker.environment, worker.running ? count(worker.running) : "", count(worker.done),
        worker.failed ? count(worker.failed) : "", worker.busy ? duration(worker.busy) : "", `${Math.round(100 * share)} %`,
      ];
      return element("tr", "", cells.map((cell) => element("td", cell)));
    }));
    const more = weave.worker_count - weave.workers.length;
    $("workers-more").textContent = more ? `and ${count(more)} more` : "";
  }

  function failures(weave) {
    $("failed").hidden = !weave.failed;
    const open = new Set([...document.querySelectorAll("details[open]")].map((one) => one.dataset.place));
    $("failures").replaceChildren(...weave.failures.map((failure, place) => {
      const one = element("details", "", [element("summary", `${failure.where}: ${failure.kind}`), element("pre", failure.text)]);
      one.dataset.place = String(place);
      one.open = open.has(String(place));
      return one;
    }));
    if (weave.failed > weave.failures.length) {
      $("failures").append(element("p", `and ${count(weave.failed - weave.failures.length)} more`));
    }
  }

  async function details(number) {
    const changed = shown !== number;
    if (changed) {
      shown = number;
      finished = false;
      looks = 0;
      $("timeline").src = `/weaves/${number}/timeline`;
    }
    if (finished) return;
    const weave = await ask(`/weaves/${number}`);
    if (shown !== number) return;
    $("weave").hidden = false;
    $("title").textContent = `${weave.number}. ${weave.title}`;
    const began = new Date(weave.began * 1000).toLocaleTimeString();
    $("state").textContent = `${stateOf(weave.state)}, ${duration(weave.seconds)}, began ${began}`;
    tasks(weave.rows);
    workers(weave);
    failures(weave);
    $("graph").src = `/weaves/${number}/graph.svg?${Date.now()}`;
    const ended = weave.state !== "running";
    if (!changed && (ended || looks % TIMELINE_EVERY === 0)) await timeline(number);
    looks++;
    // Once more after the end: what was asked for last may have been from before it.
    finished = ended && !changed;
  }

  async function timeline(number) {
    const frame = $("timeline").contentWindow;
    if (!frame || !frame.wove || !frame.wove.ready) return;
    const data = await ask(`/weaves/${number}/data`, "text");
    if (shown === number) await frame.wove.show(data);
  }

  async function look() {
    try {
      const weaves = await ask("/weaves");
      const number = weaves.some((weave) => weave.number === chosen) ? chosen : weaves.length ? weaves[0].number : null;
      if (number !== null) await details(number);
      list(weaves);
      $("link").textContent = weaves.length ? "live" : "no weave has run yet";
      $("link").className = "";
    } catch (error) {
      $("link").textContent = "the process does not answer: this is how it stood";
      $("link").className = "lost";
    }
  }

  async function watch() {
    await look();
    setTimeout(watch, LOOK_MS);
  }

  watch();
})();
