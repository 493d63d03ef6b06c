"use strict";
// Draws the runs of a weave. Every text of the data reaches the document as text (textContent, fillText), never as HTML.

(() => {
  const $ = (id) => document.getElementById(id);
  const STATES = ["done", "failed", "lost", "cancelled", "unfinished", "retried"];
  const SIGNS = { failed: "\u2715", lost: "\u25c6", cancelled: "\u25a1", unfinished: "\u2026", retried: "\u25b2" };
  const SIGN_COLORS = {
    light: { failed: "#c01c28", lost: "#8a1fb0", cancelled: "#5a6372", unfinished: "#5a6372", retried: "#a35200" },
    dark: { failed: "#ff7b80", lost: "#dd8cff", cancelled: "#9aa4b2", unfinished: "#9aa4b2", retried: "#ffb454" },
  };
  const TASK_COLORS = {
    light: ["#3b76d6", "#1f8a5b", "#8a63d2", "#b5651d", "#0f8b9d", "#b84a7d", "#6b7a1f", "#58687f"],
    dark: ["#6ea4ff", "#4cc38a", "#b296f5", "#e0a15a", "#4fc7d9", "#f08cba", "#b6c653", "#9fb0c9"],
  };
  const PART_COLORS = {
    light: ["#c9ced6", "#f2c66d", "#9cc7f0", "#dfe3ea", "#e2a86a", "#3b76d6", "#e2a86a", "#7fb7b0", "#c9a7e0"],
    dark: ["#4a515d", "#a87b1e", "#2f6aa3", "#363c47", "#8a5a26", "#6ea4ff", "#8a5a26", "#2f7c74", "#6f4a8c"],
  };
  const AXIS = 24, GROUP = 20, MARK = 14;
  const FAINT = 0, HALF = 1, FULL = 3, STRENGTHS = [0.1, 0.5, 0.5, 1];
  const MIN_ROW = 9, MAX_ROW = 22;

  let data = null;
  let view = { start: 0, end: 1 };
  let scroll = 0, rowHeight = MAX_ROW, rows = [], contentHeight = 0, gutter = 190;
  let selected = -1, hovered = -1, matches = null, matchList = [], matchAt = -1;
  let colors = {}, scheme = "light";
  let pending = false;

  // ------------------------------------------------------------------ data

  async function inflate(base64) {
    const binary = atob(base64.trim());
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function decode(base64) {
    const bytes = await inflate(base64);
    const size = new DataView(bytes.buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + size)));
    const n = header.runs;
    const columns = {};
    for (const name of ["lane", "task", "item", "state", "attempt", "losses", "error", "out", "in", "begun", ...header.phases]) {
      columns[name] = new Int32Array(n);
    }
    let at = 4 + size;
    for (const name of header.columns) {
      const column = columns[name];
      let value = 0;
      for (let i = 0; i < n; i++) {
        value = (value + (bytes[at + i] | bytes[at + n + i] << 8 | bytes[at + 2 * n + i] << 16 | bytes[at + 3 * n + i] << 24)) | 0;
        column[i] = value;
      }
      at += 4 * n;
    }
    return arrange(header, columns);
  }

  // Seconds as floats, and for each lane where its runs are.
  function arrange(header, columns) {
    const n = header.runs, unit = header.unit, phases = header.phases;
    const work = phases.indexOf("work");
    const begun = new Float64Array(n), ended = new Float64Array(n), from = new Float64Array(n), until = new Float64Array(n);
    const reach = new Float64Array(n); // the latest end so far in the lane: what may reach into a view
    const lanes = header.lanes.map(([environment, worker, short, slot]) => ({ environment, worker, short, slot, first: 0, last: 0 }));
    let lane = -1;
    for (let i = 0; i < n; i++) {
      let before = 0, busy = 0, after = 0;
      for (let p = 0; p < phases.length; p++) {
        const part = columns[phases[p]][i];
        if (p < work - 1) before += part;
        else if (p <= work + 1) busy += part;
        else after += part;
      }
      begun[i] = columns.begun[i] * unit;
      ended[i] = begun[i] + busy * unit;
      from[i] = begun[i] - before * unit;
      until[i] = ended[i] + after * unit;
      if (columns.lane[i] !== lane) {
        lane = columns.lane[i];
        lanes[lane].first = i;
        reach[i] = ended[i];
      } else {
        reach[i] = Math.max(reach[i - 1], ended[i]);
      }
      lanes[lane].last = i + 1;
    }
    return { ...header, columns, lanes, begun, ended, from, until, reach, work, seconds: Math.max(header.seconds, 1e-6) };
  }

  // The first run of [first, last) whose value in the ascending array is above the limit.
  function search(array, first, last, limit) {
    while (first < last) {
      const middle = (first + last) >> 1;
      if (array[middle] < limit) first = middle + 1;
      else last = middle;
    }
    return first;
  }

  // ------------------------------------------------------------------ words

  function duration(seconds) {
    if (seconds >= 3600) return `${Math.floor(seconds / 3600)} h ${String(Math.floor(seconds / 60) % 60).padStart(2, "0")} min`;
    if (seconds >= 60) return `${Math.floor(seconds / 60)} min ${String(Math.floor(seconds) % 60).padStart(2, "0")} s`;
    if (seconds >= 1) return `${seconds.toPrecision(3)} s`;
    if (seconds >= 1e-3) return `${(seconds * 1e3).toPrecision(3)} ms`;
    return `${Math.round(seconds * 1e6)} \u00b5s`;
  }

  function bytes(count) {
    if (count < 1e3) return `${count} B`;
    if (count < 1e6) return `${(count / 1e3).toPrecision(3)} kB`;
    return `${(count / 1e6).toPrecision(3)} MB`;
  }

  const number = (value) => value.toLocaleString("en");
  const lineOf = (lane) => (lane.slot ? `${lane.worker} #${lane.slot + 1}` : lane.worker);

  function labelOf(lane) {
    const label = gutter < 120 ? lane.short : lane.worker;
    return lane.slot ? `${label} #${lane.slot + 1}` : label;
  }

  function nameOf(i) {
    const item = data.columns.item[i];
    return data.tasks[data.columns.task[i]] + (item < 0 ? "" : `[${item}]`);
  }

  function stateOf(i) {
    const { state, attempt, losses } = data.columns;
    let text = STATES[state[i]];
    if (attempt[i] > 1) text += `, attempt ${attempt[i]}`;
    if (losses[i]) text += `, ${losses[i]} ${losses[i] === 1 ? "loss" : "losses"} before`;
    return text;
  }

  function partsOf(i) {
    return data.phases.map((phase) => data.columns[phase][i] * data.unit);
  }

  // ------------------------------------------------------------------ layout

  function layout() {
    const width = $("lanes").clientWidth;
    gutter = width < 600 ? 92 : 190;
    const groups = new Set(data.lanes.map((lane) => lane.environment)).size;
    const room = Math.max(260, Math.min(window.innerHeight * 0.66, 900)) - AXIS - groups * GROUP;
    rowHeight = Math.max(MIN_ROW, Math.min(MAX_ROW, Math.floor(room / Math.max(1, data.lanes.length))));
    rows = [];
    let y = 0, group = null;
    data.lanes.forEach((lane, index) => {
      if (lane.environment !== group) {
        group = lane.environment;
        rows.push({ y, height: GROUP, group });
        y += GROUP;
      }
      rows.push({ y, height: rowHeight, lane: index });
      y += rowHeight;
    });
    contentHeight = y;
    const height = Math.round(Math.min(contentHeight, Math.max(260, window.innerHeight * 0.66) - AXIS)) + AXIS + 6;
    $("lanes").style.height = `${Math.max(height, 120)}px`;
    $("lanes").style.touchAction = contentHeight > height ? "none" : "pan-y";
    for (const canvas of [$("lanes"), $("overview")]) {
      const ratio = window.devicePixelRatio || 1;
      canvas.width = Math.round(canvas.clientWidth * ratio);
      canvas.height = Math.round(canvas.clientHeight * ratio);
    }
    clampScroll();
  }

  function clampScroll() {
    scroll = Math.max(0, Math.min(scroll, contentHeight + AXIS + 6 - $("lanes").clientHeight));
  }

  function setView(start, end) {
    const least = Math.max(data.seconds * 1e-7, data.unit * 4);
    const all = data.seconds * 1.02;
    let span = Math.max(least, Math.min(end - start, all));
    const low = -data.seconds * 0.01, high = data.seconds * 1.01;
    start = Math.max(low, Math.min(start + (end - start - span) / 2, high - span));
    view = { start, end: start + span };
    draw();
  }

  function fit() {
    setView(-data.seconds * 0.01, data.seconds * 1.01);
  }

  function zoom(factor, at = (view.start + view.end) / 2) {
    setView(at - (at - view.start) * factor, at + (view.end - at) * factor);
  }

  // ------------------------------------------------------------------ drawing

  function draw() {
    if (pending || !data) return;
    pending = true;
    requestAnimationFrame(() => {
      pending = false;
      drawLanes();
      drawOverview();
    });
  }

  function prepare(canvas) {
    const context = canvas.getContext("2d");
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    return context;
  }

  function drawLanes() {
    const canvas = $("lanes");
    const context = prepare(canvas);
    const width = canvas.clientWidth, height = canvas.clientHeight;
    const scale = (width - gutter) / (view.end - view.start);

    drawAxis(context, width, height, scale);
    context.save();
    context.beginPath();
    context.rect(0, AXIS, width, height - AXIS);
    context.clip();
    const marks = [];
    const batches = []; // by style, a flat list of x, y, width, height
    for (const row of rows) {
      const y = row.y - scroll + AXIS;
      if (y + row.height < AXIS || y > height || row.lane === undefined) continue;
      drawRow(row, y, width, scale, batches, marks);
    }
    context.save();
    context.beginPath();
    context.rect(gutter, AXIS, width - gutter, height - AXIS);
    context.clip();
    const fills = [...colors.tasks, ...colors.parts];
    for (const style in batches) {
      const boxes = batches[style];
      context.fillStyle = fills[style >> 2];
      context.globalAlpha = STRENGTHS[style & 3];
      for (let i = 0; i < boxes.length; i += 4) context.fillRect(boxes[i], boxes[i + 1], boxes[i + 2], boxes[i + 3]);
    }
    context.globalAlpha = 1;
    drawMarks(context, marks);
    drawChosen(context, scale);
    context.restore();
    drawLabels(context, height);
    drawScrollBar(context, width, height);
    context.restore();
  }

  function drawAxis(context, width, height, scale) {
    const steps = [1, 2, 5];
    const least = (view.end - view.start) * 90 / Math.max(1, width - gutter);
    let power = Math.pow(10, Math.floor(Math.log10(least)));
    let step = power;
    for (const s of [...steps, 10]) {
      step = s * power;
      if (step >= least) break;
    }
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.fillStyle = colors.faint;
    context.strokeStyle = colors.line;
    context.lineWidth = 1;
    context.beginPath();
    for (let t = Math.ceil(view.start / step) * step; t <= view.end; t += step) {
      const x = Math.round(gutter + (t - view.start) * scale) + 0.5;
      context.moveTo(x, AXIS - 4);
      context.lineTo(x, height);
      const digits = Math.max(0, Math.min(7, -Math.floor(Math.log10(step) + 1e-9)));
      if (x < width - 46) context.fillText(`${t.toFixed(digits).replace("-0", "0")} s`, x + 3, AXIS / 2);
    }
    context.stroke();
  }

  // A style is a color's index times four, and the index of a strength.
  function add(batches, style, x, y, width, height) {
    (batches[style] || (batches[style] = [])).push(x, y, width, height);
  }

  // Runs that are narrower than a pixel share it: the pixel's strength says for how much of it something ran.
  function drawRow(row, y, width, scale, batches, marks) {
    const { begun, ended, reach, columns } = data;
    const lane = data.lanes[row.lane];
    const { task, state } = columns;
    const palette = colors.tasks.length;
    const top = y + 1, tall = Math.max(3, row.height - 2);
    const seenMarks = {};
    let pixel = -1, cover = 0, color = 0, bright = false, strongest = 0;
    let boxAt = 0, boxEnd = -1, boxStyle = -1;

    const flushBox = () => {
      if (boxEnd > boxAt) add(batches, boxStyle, boxAt, top, boxEnd - boxAt, tall);
      boxEnd = -1;
    };
    const flushPixel = () => {
      if (pixel < 0) return;
      const style = (color % palette) * 4 + (matches && !bright ? FAINT : cover > 0.4 ? FULL : HALF);
      if (style === boxStyle && boxEnd === pixel) {
        boxEnd = pixel + 1;
      } else {
        flushBox();
        boxAt = pixel;
        boxEnd = pixel + 1;
        boxStyle = style;
      }
      pixel = -1;
    };

    let previousEnd = -Infinity;
    let first = search(reach, lane.first, lane.last, view.start);
    if (first > lane.first) previousEnd = reach[first - 1];
    for (let i = first; i < lane.last; i++) {
      const start = begun[i];
      if (start > view.end) break;
      const x0 = gutter + (start - view.start) * scale;
      const x1 = gutter + (ended[i] - view.start) * scale;
      const matched = !matches || matches[i] === 1;
      if (state[i]) mark(marks, seenMarks, STATES[state[i]], x1, y, row.height, matched);
      else if (columns.losses[i]) mark(marks, seenMarks, "lost", x0, y, row.height, matched);
      else if (columns.attempt[i] > 1) mark(marks, seenMarks, "retried", x0, y, row.height, matched);
      if (x1 - x0 >= 1.5) {
        flushPixel();
        flushBox();
        const left = Math.max(gutter - 2, x0), right = Math.min(width + 2, x1);
        const strength = matched ? FULL : FAINT;
        const gap = x1 - x0 > 4 ? 0.7 : 0;
        add(batches, (task[i] % palette) * 4 + strength, left, top, Math.max(1, right - left - gap), tall);
        if (x1 - x0 > 14) drawParts(i, x0, top, tall, scale, previousEnd, batches, strength);
      } else {
        const at = Math.floor(x0);
        if (at !== pixel) {
          flushPixel();
          pixel = at;
          cover = 0;
          bright = false;
          strongest = 0;
        }
        const part = Math.max(x1 - x0, 0.02);
        cover += part;
        if (matched && matches) bright = true;
        if (part > strongest) {
          strongest = part;
          color = task[i];
        }
      }
      if (ended[i] > previousEnd) previousEnd = ended[i];
    }
    flushPixel();
    flushBox();
  }

  // The worker's own pickling inside the bar; before and after it, as thin lines, the way there and back.
  function drawParts(i, x0, top, tall, scale, previousEnd, batches, strength) {
    const parts = partsOf(i), work = data.work;
    const styleOf = (p) => (colors.tasks.length + p) * 4 + strength;
    const loading = parts[work - 1] * scale, dumping = parts[work + 1] * scale;
    const x1 = gutter + (data.ended[i] - view.start) * scale;
    if (loading > 1) add(batches, styleOf(work - 1), x0, top, loading, tall);
    if (dumping > 1) add(batches, styleOf(work + 1), x1 - dumping - 0.7, top, dumping, tall);
    const middle = top + tall / 2 - 1.5;
    const limit = gutter + (previousEnd - view.start) * scale;
    let x = gutter + (data.from[i] - view.start) * scale;
    for (let p = 0; p < parts.length; p++) {
      if (p === work - 1) x = x1;
      if (p >= work - 1 && p <= work + 1) continue;
      const length = parts[p] * scale;
      const left = p < work ? Math.max(x, limit) : x;
      if (x + length - left > 1) add(batches, styleOf(p), left, middle, x + length - left, 3);
      x += length;
    }
  }

  function mark(marks, seen, kind, x, y, height, matched) {
    if (!SIGNS[kind] || !matched) return;
    if (seen[kind] !== undefined && x - seen[kind] < MARK) return;
    seen[kind] = x;
    marks.push([kind, x, y + height / 2]);
  }

  // A sign is drawn once, and copied from then on: text is slow.
  function signOf(kind) {
    const ratio = window.devicePixelRatio || 1;
    const key = `${kind}/${scheme}/${ratio}/${rowHeight}`;
    if (!signs.has(key)) {
      const side = Math.ceil(18 * ratio);
      const canvas = new OffscreenCanvas(side, side);
      const context = canvas.getContext("2d");
      context.scale(ratio, ratio);
      context.font = `bold ${Math.min(13, Math.max(9, rowHeight))}px system-ui, sans-serif`;
      context.textBaseline = "middle";
      context.textAlign = "center";
      context.lineWidth = 3;
      context.strokeStyle = colors.page;
      context.strokeText(SIGNS[kind], 9, 9);
      context.fillStyle = colors.signs[kind];
      context.fillText(SIGNS[kind], 9, 9);
      signs.set(key, canvas.transferToImageBitmap());
    }
    return signs.get(key);
  }

  const signs = new Map();

  function drawMarks(context, marks) {
    context.imageSmoothingEnabled = false;
    for (const [kind, x, y] of marks) context.drawImage(signOf(kind), Math.round(x) - 9, Math.round(y) - 9, 18, 18);
  }

  function drawChosen(context, scale) {
    for (const [i, style] of [[hovered, colors.faint], [selected, colors.text]]) {
      if (i < 0) continue;
      const row = rows.find((one) => one.lane === data.columns.lane[i]);
      const y = row.y - scroll + AXIS;
      const at = (time) => gutter + (time - view.start) * scale;
      context.strokeStyle = style;
      context.lineWidth = 1.5;
      context.beginPath();
      context.moveTo(at(data.from[i]), y + row.height / 2);
      context.lineTo(at(data.begun[i]), y + row.height / 2);
      context.moveTo(at(data.ended[i]), y + row.height / 2);
      context.lineTo(at(data.until[i]), y + row.height / 2);
      context.stroke();
      context.strokeRect(at(data.begun[i]) - 1, y, Math.max(3, at(data.ended[i]) - at(data.begun[i]) + 1), row.height);
    }
  }

  function drawLabels(context, height) {
    context.fillStyle = colors.page;
    context.fillRect(0, AXIS, gutter - 1, height - AXIS);
    context.fillStyle = colors.line;
    context.fillRect(gutter - 1, AXIS, 1, height - AXIS);
    context.textBaseline = "middle";
    let last = -Infinity;
    for (const row of rows) {
      const y = row.y - scroll + AXIS + row.height / 2;
      if (y < AXIS - 10 || y > height + 10) continue;
      if (row.group !== undefined) {
        context.fillStyle = colors.panel;
        context.fillRect(0, y - row.height / 2, $("lanes").clientWidth, row.height);
        context.fillStyle = colors.text;
        context.font = "600 13px system-ui, sans-serif";
        context.fillText(row.group, 8, y);
        last = y + 3;
      } else if (y - last >= 12) {
        context.fillStyle = colors.faint;
        context.font = "12px system-ui, sans-serif";
        context.fillText(fitted(context, labelOf(data.lanes[row.lane]), gutter - 16), 8, y);
        last = y;
      }
    }
  }

  function drawScrollBar(context, width, height) {
    const room = height - AXIS, all = contentHeight + 6;
    if (all <= room + 1) return;
    context.fillStyle = colors.faint;
    context.globalAlpha = 0.6;
    context.fillRect(width - 6, AXIS + scroll / all * room, 5, Math.max(16, room / all * room));
    context.globalAlpha = 1;
  }

  const widths = new Map();

  function fitted(context, text, room) {
    const key = `${room}/${text}`;
    if (!widths.has(key)) {
      if (widths.size > 5000) widths.clear();
      let short = text.slice(0, 120);
      // The end tells workers of one host apart, so that the middle goes.
      while (short.length > 4 && context.measureText(short).width > room) {
        const half = Math.floor(short.length / 2);
        short = `${short.slice(0, Math.max(1, half - 2))}\u2026${short.slice(half + 1).replace(/^\u2026/, "")}`;
      }
      widths.set(key, short);
    }
    return widths.get(key);
  }

  // ------------------------------------------------------------------ the overview

  let load = null;

  function measureLoad() {
    const bins = 500, each = data.seconds / bins;
    const busy = new Float64Array(bins), bad = new Uint8Array(bins);
    for (let i = 0; i < data.runs; i++) {
      let bin = Math.max(0, Math.min(bins - 1, Math.floor(data.begun[i] / each)));
      const end = Math.min(data.ended[i], data.seconds);
      if (data.columns.state[i] === 1 || data.columns.state[i] === 2) bad[Math.min(bins - 1, Math.floor(end / each))] = 1;
      for (let time = data.begun[i]; time < end && bin < bins; bin++) {
        const until = Math.min(end, (bin + 1) * each);
        busy[bin] += (until - time) / each;
        time = until;
      }
    }
    load = { busy, bad, most: Math.max(1e-9, ...busy) };
  }

  function drawOverview() {
    const canvas = $("overview");
    const context = prepare(canvas);
    const width = canvas.clientWidth - gutter, height = canvas.clientHeight;
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.fillStyle = colors.faint;
    context.fillText(gutter < 120 ? `max ${Math.round(load.most)}` : `running: at most ${Math.round(load.most)}`, 8, height / 2);
    const each = width / load.busy.length;
    context.fillStyle = colors.tasks[0];
    context.globalAlpha = 0.75;
    load.busy.forEach((busy, bin) => {
      const tall = (height - 4) * busy / load.most;
      context.fillRect(gutter + bin * each, height - tall, Math.ceil(each), tall);
    });
    context.globalAlpha = 1;
    context.fillStyle = colors.signs.failed;
    load.bad.forEach((bad, bin) => bad && context.fillRect(gutter + bin * each - 1, 0, 3, 4));
    const x0 = gutter + Math.max(0, view.start / data.seconds) * width;
    const x1 = gutter + Math.min(1, view.end / data.seconds) * width;
    context.strokeStyle = colors.text;
    context.lineWidth = 1.5;
    context.strokeRect(x0 + 1, 1, Math.max(4, x1 - x0 - 2), height - 2);
  }

  // ------------------------------------------------------------------ what is under the pointer

  function runAt(x, y) {
    const row = rows.find((one) => y >= one.y - scroll + AXIS && y < one.y - scroll + AXIS + one.height);
    if (!row || row.lane === undefined || x < gutter) return -1;
    const scale = ($("lanes").clientWidth - gutter) / (view.end - view.start);
    const lane = data.lanes[row.lane];
    const slack = 3 / scale, time = view.start + (x - gutter) / scale;
    let best = -1, distance = Infinity;
    for (let i = search(data.reach, lane.first, lane.last, time - slack); i < lane.last && data.begun[i] <= time + slack; i++) {
      const off = Math.max(data.begun[i] - time, time - data.ended[i], 0);
      if (off < distance) {
        distance = off;
        best = i;
      }
    }
    return best;
  }

  function showTip(i, x, y) {
    const tip = $("tip");
    tip.hidden = i < 0;
    if (i < 0) return;
    const lane = data.lanes[data.columns.lane[i]];
    const lines = [
      `${nameOf(i)}  ${duration(data.ended[i] - data.begun[i])}`,
      stateOf(i),
      `${lane.environment} \u00b7 ${lineOf(lane)}`,
    ];
    const error = data.columns.error[i];
    if (error >= 0) lines.push(data.errors[error].slice(0, 300));
    tip.textContent = lines.join("\n");
    const room = $("lanes").parentElement;
    const left = Math.min(x + 14, room.clientWidth - tip.offsetWidth - 6);
    tip.style.left = `${Math.max(4, left)}px`;
    const below = y + $("overview").offsetHeight + 18;
    tip.style.top = `${below + tip.offsetHeight > room.clientHeight ? Math.max(2, below - tip.offsetHeight - 30) : below}px`;
  }

  function element(name, text = "", children = []) {
    const made = document.createElement(name);
    if (text !== "") made.textContent = text;
    made.append(...children);
    return made;
  }

  function choose(i, center = false) {
    selected = i;
    const panel = $("details");
    panel.hidden = i < 0;
    if (i >= 0) {
      if (center) {
        const half = Math.max((view.end - view.start) / 2, 0);
        const span = Math.min(half * 2, Math.max((data.until[i] - data.from[i]) * 8, data.seconds / 400));
        const middle = (data.begun[i] + data.ended[i]) / 2;
        setView(middle - span / 2, middle + span / 2);
        const row = rows.find((one) => one.lane === data.columns.lane[i]);
        const visible = $("lanes").clientHeight - AXIS;
        if (row.y < scroll || row.y + row.height > scroll + visible) scroll = row.y - visible / 2;
        clampScroll();
      }
      panel.replaceChildren(...details(i));
    }
    draw();
  }

  function details(i) {
    const { columns } = data;
    const lane = data.lanes[columns.lane[i]];
    const close = element("button", "\u2715");
    close.type = "button";
    close.setAttribute("aria-label", "Close");
    close.addEventListener("click", () => choose(-1));
    const list = element("dl");
    const say = (term, text) => list.append(element("dt", term), element("dd", text));
    say("state", stateOf(i));
    say("where", `${lane.environment} \u00b7 ${lineOf(lane)}`);
    say("began", `${duration(data.begun[i])} after the start, ${new Date((data.origin + data.begun[i]) * 1e3).toISOString()}`);
    say("took", duration(data.ended[i] - data.begun[i]));
    if (columns.out[i] || columns.in[i]) say("bytes", `${bytes(columns.out[i])} out, ${bytes(columns.in[i])} in`);
    if (columns.error[i] >= 0) say("error", data.errors[columns.error[i]]);
    const found = [element("h2", nameOf(i), [close]), list];
    const parts = partsOf(i);
    if (parts.some((part, p) => part > 0 && p !== data.work)) found.push(...way(parts));
    return found;
  }

  function way(parts) {
    const all = parts.reduce((sum, part) => sum + part, 0) || 1;
    const bar = element("div");
    bar.className = "way";
    const list = element("ul");
    list.className = "parts";
    parts.forEach((part, p) => {
      if (part <= 0) return;
      const piece = element("span");
      piece.style.flexGrow = String(part / all * 1000);
      piece.style.background = colors.parts[p];
      piece.title = data.phases[p];
      bar.append(piece);
      const key = element("i");
      key.style.background = colors.parts[p];
      list.append(element("li", "", [key, `${data.phases[p]} ${duration(part)}`]));
    });
    return [bar, list];
  }

  // ------------------------------------------------------------------ search

  // Every word must be found in the run's task, item, worker, environment or error; "is:failed" asks for a state.
  function find(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    matchAt = -1;
    matchList = [];
    matches = null;
    if (words.length) {
      const { columns } = data;
      const tables = words.map((word) => ({
        word: word.replace(/^#/, ""),
        state: word.startsWith("is:") ? word.slice(3) : null,
        tasks: data.tasks.map((task) => task.toLowerCase().includes(word)),
        errors: data.errors.map((error) => error.toLowerCase().includes(word)),
        lanes: data.lanes.map((lane) => `${lane.environment} ${lineOf(lane)}`.toLowerCase().includes(word)),
        item: /^#?\d+$/.test(word) ? Number(word.replace(/^#/, "")) : -1,
        named: /^(.+)\[(\d+)\]$/.exec(word),
      }));
      matches = new Uint8Array(data.runs);
      for (let i = 0; i < data.runs; i++) {
        let all = 1;
        for (const table of tables) {
          if (!found(table, columns, i)) {
            all = 0;
            break;
          }
        }
        if (all) {
          matches[i] = 1;
          matchList.push(i);
        }
      }
      matchList.sort((a, b) => data.begun[a] - data.begun[b]);
    }
    tellMatches();
    draw();
  }

  function found(table, columns, i) {
    if (table.state !== null) {
      const state = STATES[columns.state[i]];
      return state.startsWith(table.state)
        || ("lost".startsWith(table.state) && columns.losses[i] > 0)
        || ("retried".startsWith(table.state) && columns.attempt[i] > 1);
    }
    if (table.named) {
      return columns.item[i] === Number(table.named[2]) && data.tasks[columns.task[i]].toLowerCase() === table.named[1];
    }
    if (table.tasks[columns.task[i]] || table.lanes[columns.lane[i]]) return true;
    if (columns.error[i] >= 0 && table.errors[columns.error[i]]) return true;
    return table.item >= 0 && columns.item[i] === table.item;
  }

  function tellMatches() {
    const total = matchList.length;
    const text = matchAt >= 0 ? `${number(matchAt + 1)} of ${number(total)}` : number(total);
    $("matches").textContent = matches ? text : "";
  }

  function toMatch(step) {
    if (!matchList.length) return;
    matchAt = matchAt < 0 && step < 0 ? matchList.length - 1 : (matchAt + step + matchList.length) % matchList.length;
    tellMatches();
    choose(matchList[matchAt], true);
  }

  // ------------------------------------------------------------------ around the picture

  function describe() {
    const counts = STATES.map(() => 0);
    for (const state of data.columns.state) counts[state]++;
    const told = STATES.map((state, s) => (counts[s] ? `${number(counts[s])} ${state}` : "")).filter(Boolean);
    const lanes = new Set(data.lanes.map((lane) => `${lane.environment}/${lane.worker}`)).size;
    $("summary").textContent = data.runs
      ? `${number(data.runs)} runs of ${number(data.tasks.length)} tasks on ${number(lanes)} workers in ${duration(data.seconds)}: ${told.join(", ")}`
      : "Nothing ran.";
    legend(counts);
    figures();
  }

  function legend(counts) {
    const entry = (query, sign, text) => {
      const button = element("button", "", [sign, text]);
      button.type = "button";
      button.addEventListener("click", () => {
        $("query").value = $("query").value === query ? "" : query;
        find($("query").value);
      });
      return element("li", "", [button]);
    };
    const entries = data.tasks.slice(0, 24).map((task, t) => {
      const sign = element("i");
      sign.style.background = colors.tasks[t % colors.tasks.length];
      return entry(task.split(/\s+/)[0], sign, task.slice(0, 60));
    });
    STATES.forEach((state, s) => {
      if (!SIGNS[state] || !counts[s]) return;
      const sign = element("b", SIGNS[state]);
      sign.style.color = colors.signs[state];
      entries.push(entry(`is:${state}`, sign, `${state} ${number(counts[s])}`));
    });
    $("legend").replaceChildren(...entries);
  }

  function figures() {
    const { columns, phases, work } = data;
    const remote = phases.map((_, p) => p !== work && columns[phases[p]].some((part) => part > 0));
    const shown = phases.map((_, p) => p).filter((p) => remote[p]);
    const groups = data.tasks.map(() => []);
    for (let i = 0; i < data.runs; i++) groups[columns.task[i]].push(i);
    const head = ["task", "runs", "failed", "retried", "lost", "busy in all", "median", "95 %", "longest", ...shown.map((p) => `${phases[p]}, mean`)];
    const body = groups.map((runs, t) => {
      const times = Float64Array.from(runs, (i) => data.ended[i] - data.begun[i]).sort();
      const at = (share) => times[Math.min(times.length - 1, Math.floor(share * times.length))];
      const count = (test) => number(runs.reduce((sum, i) => sum + (test(i) ? 1 : 0), 0));
      const mean = (p) => runs.reduce((sum, i) => sum + columns[phases[p]][i], 0) * data.unit / runs.length;
      return [
        data.tasks[t], number(runs.length), count((i) => columns.state[i] === 1),
        count((i) => columns.attempt[i] > 1), count((i) => columns.state[i] === 2 || columns.losses[i] > 0),
        duration(times.reduce((sum, time) => sum + time, 0)), duration(at(0.5)), duration(at(0.95)), duration(at(1)),
        ...shown.map((p) => duration(mean(p))),
      ];
    });
    const line = (cells, name) => element("tr", "", cells.map((cell) => element(name, cell)));
    $("table").replaceChildren(element("thead", "", [line(head, "th")]), element("tbody", "", body.map((cells) => line(cells, "td"))));
  }

  // ------------------------------------------------------------------ light and dark

  const darkness = window.matchMedia("(prefers-color-scheme: dark)");

  function paint() {
    const chosen = document.documentElement.dataset.theme;
    scheme = chosen || (darkness.matches ? "dark" : "light");
    const style = getComputedStyle(document.body);
    const probe = element("span");
    document.body.append(probe);
    for (const name of ["page", "panel", "line", "text", "faint"]) {
      probe.style.color = `var(--${name})`;
      colors[name] = getComputedStyle(probe).color || style.color;
    }
    probe.remove();
    colors.tasks = TASK_COLORS[scheme];
    colors.parts = PART_COLORS[scheme];
    colors.signs = SIGN_COLORS[scheme];
    $("theme").textContent = chosen ? (chosen === "dark" ? "Dark" : "Light") : "Auto";
    if (data) {
      describe();
      choose(selected);
    }
  }

  function switchTheme() {
    const root = document.documentElement;
    const next = { "": "light", light: "dark", dark: "" }[root.dataset.theme || ""];
    if (next) root.dataset.theme = next;
    else delete root.dataset.theme;
    paint();
  }

  // ------------------------------------------------------------------ hands

  function listen() {
    const canvas = $("lanes"), overview = $("overview");
    const pointers = new Map();
    let moved = 0, spread = 0;
    const timeAt = (x) => view.start + (x - gutter) * (view.end - view.start) / (canvas.clientWidth - gutter);

    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const pixels = event.deltaY * (event.deltaMode ? 16 : 1);
      if (event.shiftKey || event.offsetX < gutter) {
        scroll += pixels + event.deltaX;
        clampScroll();
        draw();
      } else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        const shift = event.deltaX * (view.end - view.start) / canvas.clientWidth;
        setView(view.start + shift, view.end + shift);
      } else {
        zoom(Math.exp(Math.max(-200, Math.min(200, pixels)) / 300), timeAt(event.offsetX));
      }
    }, { passive: false });

    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
      moved = spread = 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) {
        hovered = runAt(event.offsetX, event.offsetY);
        showTip(hovered, event.offsetX, event.offsetY);
        draw();
        return;
      }
      pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
      const points = [...pointers.values()];
      if (points.length === 2) {
        const now = Math.max(20, Math.abs(points[0][0] - points[1][0]));
        if (spread) zoom(spread / now, timeAt((points[0][0] + points[1][0]) / 2));
        spread = now;
        moved = 99;
        return;
      }
      const [dx, dy] = [event.offsetX - before[0], event.offsetY - before[1]];
      moved += Math.abs(dx) + Math.abs(dy);
      scroll -= dy;
      clampScroll();
      const shift = dx * (view.end - view.start) / (canvas.clientWidth - gutter);
      setView(view.start - shift, view.end - shift);
    });
    const leave = (event) => {
      if (pointers.delete(event.pointerId) && event.type === "pointerup" && moved < 6) {
        choose(runAt(event.offsetX, event.offsetY));
      }
      spread = 0;
    };
    canvas.addEventListener("pointerup", leave);
    canvas.addEventListener("pointercancel", leave);
    canvas.addEventListener("pointerleave", () => {
      hovered = -1;
      showTip(-1);
      draw();
    });
    canvas.addEventListener("dblclick", (event) => zoom(0.4, timeAt(event.offsetX)));

    const jump = (event) => {
      if (!(event.buttons & 1)) return;
      const middle = (event.offsetX - gutter) / (overview.clientWidth - gutter) * data.seconds;
      const half = (view.end - view.start) / 2;
      setView(middle - half, middle + half);
    };
    overview.addEventListener("pointerdown", jump);
    overview.addEventListener("pointermove", jump);

    $("in").addEventListener("click", () => zoom(0.6));
    $("out").addEventListener("click", () => zoom(1 / 0.6));
    $("fit").addEventListener("click", fit);
    $("theme").addEventListener("click", switchTheme);
    $("help").addEventListener("click", showKeys);
    $("next").addEventListener("click", () => toMatch(1));
    $("previous").addEventListener("click", () => toMatch(-1));
    $("search").addEventListener("submit", (event) => event.preventDefault());
    $("query").addEventListener("input", () => find($("query").value));
    document.addEventListener("keydown", press);
    darkness.addEventListener("change", paint);
    window.addEventListener("resize", () => {
      if (!data) return; // it is still being unpacked
      layout();
      draw();
    });
  }

  function showKeys() {
    $("keys").hidden = !$("keys").hidden;
    $("help").setAttribute("aria-expanded", String(!$("keys").hidden));
  }

  function press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === $("query")) {
      if (event.key === "Enter") {
        event.preventDefault();
        toMatch(event.shiftKey ? -1 : 1);
      } else if (event.key === "Escape") {
        $("lanes").focus();
      }
      return;
    }
    const step = (view.end - view.start) * 0.15;
    const move = (by) => setView(view.start + by, view.end + by);
    const rise = (by) => {
      scroll += by;
      clampScroll();
      draw();
    };
    const actions = {
      ArrowLeft: () => move(-step), ArrowRight: () => move(step),
      ArrowUp: () => rise(-60), ArrowDown: () => rise(60),
      "+": () => zoom(0.6), "=": () => zoom(0.6), "-": () => zoom(1 / 0.6), "0": fit,
      "/": () => $("query").focus(), n: () => toMatch(1), N: () => toMatch(-1),
      t: switchTheme, "?": showKeys, Escape: () => choose(-1),
    };
    if (Object.hasOwn(actions, event.key)) {
      event.preventDefault();
      actions[event.key]();
    }
  }

  // ------------------------------------------------------------------ start

  // Shows data, the first or newer ones; a view of everything stays one.
  async function show(base64) {
    const fresh = await decode(base64);
    const whole = !data || view.end >= data.seconds && view.start <= 0;
    data = fresh;
    selected = hovered = -1;
    measureLoad();
    layout();
    paint();
    if ($("query").value) find($("query").value);
    if (whole) fit();
    else setView(view.start, view.end);
  }

  window.wove = { show, fit, view: () => ({ ...view }), setView, find, matches: () => matchList.length, ready: false };
  paint();
  listen();
  show($("data").textContent).then(() => {
    drawLanes();
    drawOverview();
    window.wove.ready = true;
  });
})();
