"use strict";
// Text from runs is put into the page as text only: no innerHTML anywhere.

const PAGE = 10; // segments shown at once
const SIDE_BY_SIDE = 16; // methods shown until more are asked for
const at = (id) => document.getElementById(id);
const data = JSON.parse(at("data").textContent);

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

// theme -----------------------------------------------------------------------------------------

const theme = at("theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function remembered(value) {
  try { // a page opened as a file may have no storage
    if (value) localStorage.setItem("lodarepro-theme", value);
    return localStorage.getItem("lodarepro-theme");
  } catch { return null; }
}

function setTheme(value) {
  if (value) document.documentElement.dataset.theme = value;
  const dark = (value || (prefersDark.matches ? "dark" : "light")) === "dark";
  theme.textContent = dark ? "Light" : "Dark"; // what it changes to
}

theme.hidden = false;
setTheme(remembered());
theme.addEventListener("click", () => {
  const value = theme.textContent.toLowerCase();
  remembered(value);
  setTheme(value);
});

// figures ---------------------------------------------------------------------------------------

for (const choice of document.querySelectorAll("select[data-figures]")) {
  const show = () => {
    for (const figure of at("figures-" + choice.dataset.figures).children) {
      figure.hidden = figure.dataset.metric !== "" && figure.dataset.metric !== choice.value;
    }
  };
  choice.addEventListener("change", show);
  show(); // a browser may have kept another choice
}

// provenance ------------------------------------------------------------------------------------

const dialog = at("provenance");

function pairs(found) {
  const list = element("dl");
  for (const [key, value] of found) {
    if (value == null || value === "") continue;
    list.append(element("dt", {}, key), element("dd", {}, value));
  }
  return list;
}

function tree(value, indent = "") {
  if (typeof value === "string") return /^\s*$|\n/.test(value) ? JSON.stringify(value) : value;
  if (value === null || typeof value !== "object") return String(value);
  if (Array.isArray(value)) return value.length ? "[" + value.map((one) => tree(one)).join(", ") + "]" : "[]";
  const lines = Object.entries(value).map(([key, one]) => {
    const nested = one !== null && typeof one === "object" && !Array.isArray(one) && Object.keys(one).length;
    return indent + key + ":" + (nested ? "\n" + tree(one, indent + "  ") : " " + tree(one));
  });
  return lines.length ? lines.join("\n") : "{}";
}

function figure(value) {
  return value == null ? null : String(Number(value.toPrecision(7)));
}

function counted(value) {
  return value.toLocaleString("en");
}

function folded(title, text) {
  return element("details", {}, element("summary", {}, title), element("pre", {}, text));
}

function ofCell(number, place, columnNumber) {
  const table = data.tables[number];
  const rows = table ? table.groups.flatMap((group) => group.rows.map((row) => ({ ...row, group: group.title }))) : [];
  const row = rows[place], column = table && table.columns[columnNumber];
  if (!row || !column) return null;
  const cell = row.cells[column.key];
  const seeds = row.runs.map((id) => data.runs[id].config.seed);
  const ofSeed = (i) => row.runs.length === cell.values.length
    ? [" (", element("a", { href: "#run:" + row.runs[i] }, "seed " + seeds[i]), ")"] : [];
  const reruns = cell.reruns && [...new Set(cell.reruns.map(figure))].join(" to ");
  return [[row.group, row.label, column.title].filter(Boolean).join(" · "), [
    pairs([
      ["mean", cell.mean == null ? "not run" : figure(cell.mean) + " " + column.unit],
      ["std. deviation", figure(cell.std)],
      ["of each seed", element("span", {}, ...cell.values.flatMap((value, i) => [i ? ", " : "", figure(value), ...ofSeed(i)]))],
      ["print", cell.print],
      ["difference", figure(cell.difference)],
      ["reruns", reruns],
      ["verdict", cell.verdict],
      ["signature", cell.signature],
      ["trainable", counted(row.trainable) + (row.printed_trainable ? " (print: " + row.printed_trainable + ")" : "")],
      ["q/k/v MACs a token", row.qkv_macs_per_token && row.qkv_macs_per_token.map(counted).join(" / ")],
      ["cell", row.overrides.join(" ")],
    ]),
    row.reruns.length ? folded("Published reruns", row.reruns.map((one) => tree(one)).join("\n\n")) : null,
    ...row.runs.flatMap((id, i) => [element("h3", {}, "Seed " + seeds[i]), ofRun(id, row.hypotheses[i])]),
  ]];
}

// What stands behind a run; with a file of texts, first which of its decodings a figure is of.
function ofRun(id, file) {
  const { config, provenance, checksums, protocol_version, parameters, training, evaluations } = data.runs[id];
  const taken = evaluations.filter((one) => one.hypotheses === file && one.subset === "all");
  const code = provenance.code;
  const dirty = code.dirty ? ", with uncommitted changes" : "";
  const machine = provenance.machine;
  return element("div", {},
    pairs([
      ["run", element("a", { href: "#run:" + id }, id)],
      ["checkpoint", taken.map((one) => one.checkpoint).join(" = ")],
      ["texts", taken.length ? element("code", {}, file) : null],
      ["decoded with", taken.length ? tree(taken[0].decode).replaceAll("\n", ", ") : null],
      ["code", "lodarepro " + code.version + (code.commit ? ", commit " + code.commit : "") + dirty],
      ["protocol version", String(protocol_version)],
      ["seed", String(config.seed)],
      ["hardware", [provenance.device, machine.processor, machine.cores && machine.cores + " cores", machine.memory_gib && machine.memory_gib + " GiB"].filter(Boolean).join(", ")],
      ["finished", provenance.finished],
      ["trainable", counted(parameters.trainable) + " of " + counted(parameters.total) + " parameters"],
      ["training", counted(training.steps) + " steps, " + training.seconds.train + " s; decoding " + training.seconds.decode + " s"],
      ...Object.entries(checksums).map(([name, sha256]) => ["sha256 of " + name, element("code", {}, sha256)]),
    ]),
    folded("Scores and signatures", evaluations.map((one) =>
      one.checkpoint + ", " + one.subset + " (" + one.segments + " segments, " + one.hypotheses + "), validation loss " + one.val_loss +
      "\n  decoded with " + tree(one.decode).replaceAll("\n", ", ") + "\n" +
      Object.values(one.scores).map(([value, unit, signature]) => "  " + value + " " + unit + "  " + signature).join("\n")).join("\n\n")),
    folded("Validation losses and checkpoints", tree({ epochs: training.epochs.map((one) => tree(one).replaceAll("\n", ", ")), checkpoints: training.checkpoints || {}, stretches: training.stretches || [] })),
    folded("Configuration", tree(config)),
    folded("Packages, machine, data", tree(provenance)),
  );
}

function asked() {
  let parts;
  try { parts = decodeURIComponent(location.hash.slice(1)).split(":"); } catch { return null; } // no text at all
  if (parts[0] === "cell") return ofCell(Number(parts[1]), Number(parts[2]), Number(parts[3]));
  if (parts[0] === "run" && Object.hasOwn(data.runs, parts[1])) return ["Provenance", [ofRun(parts[1])]];
  return null;
}

function follow() {
  const found = asked();
  if (!found) { if (dialog.open) dialog.close(); return; }
  at("provenance-title").textContent = found[0];
  at("provenance-body").replaceChildren(...found[1].filter(Boolean));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

addEventListener("hashchange", follow);
dialog.addEventListener("close", () => {
  // The address is that of the page again, without a scroll; the link that was followed has the focus again.
  if (/^#(cell|run)(:|%3A)/i.test(location.hash)) history.replaceState(null, "", location.pathname + location.search);
});
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
follow();

// texts -----------------------------------------------------------------------------------------

const loaded = new Map(); // number of the test set -> it
let test = null; // the one that is shown
let found = []; // its segments that are shown, in order
let page = 0;

async function unpacked(number) {
  if (!loaded.has(number)) {
    const bytes = Uint8Array.from(atob(at("texts-" + number).textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    loaded.set(number, prepared(await new Response(stream).json()));
  }
  return loaded.get(number);
}

function prepared(set) {
  // Looked through at every key: in small letters once.
  const joined = (texts) => texts.join("\n").toLowerCase();
  const small = {
    context: set.contexts.map((text) => text.toLowerCase()),
    references: set.references.map(joined),
    hypotheses: set.contexts.map((_, i) => joined(set.systems.map((system) => system.hypotheses[i]))),
  };
  small.all = set.contexts.map((_, i) => [small.context[i], small.references[i], small.hypotheses[i]].join("\n"));
  for (const system of set.systems) system.cut = new Set(system.unfinished);
  return { ...set, small, hidden: new Set([...set.systems.keys()].slice(SIDE_BY_SIDE)) };
}

function options(select, found) {
  const before = select.value;
  select.replaceChildren(...found.map(([value, text]) => element("option", { value }, text)));
  if (found.some(([value]) => String(value) === before)) select.value = before;
}

async function choose() {
  at("status").textContent = "unpacking the texts …";
  const wantedSet = at("set").value;
  try {
    const set = await unpacked(Number(wantedSet));
    if (at("set").value !== wantedSet) return; // another was chosen meanwhile
    test = set;
  } catch (error) {
    at("status").textContent = "The texts can't be unpacked by this browser (" + error + "); open the page in a newer one.";
    return;
  }
  const systems = test.systems.map((system, i) => [i, system.label]);
  options(at("a"), systems);
  options(at("b"), systems);
  if (systems.length > 1 && at("a").value === at("b").value) at("b").value = at("a").value === "0" ? "1" : "0";
  options(at("metric"), test.metrics.map((metric) => [metric.key, metric.title]));
  at("subset").parentElement.hidden = !test.subsets;
  options(at("subset"), [["", "all"], ...[...new Set((test.subsets || []).filter(Boolean))].sort().map((name) => [name, name])]);
  at("methods").replaceChildren(...test.systems.map((system, i) => {
    const box = element("input", { type: "checkbox", checked: !test.hidden.has(i) });
    box.addEventListener("change", () => { test.hidden[box.checked ? "delete" : "add"](i); show(); });
    return element("label", {}, box, " " + system.label);
  }));
  at("controls").hidden = at("pages").hidden = false;
  update();
}

function wanted() {
  return at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
}

function update() {
  const words = wanted();
  const texts = test.small[at("where").value];
  const a = test.systems[at("a").value], b = test.systems[at("b").value];
  const metric = test.metrics.find((one) => one.key === at("metric").value);
  const sign = metric && metric.higher ? 1 : -1;
  const value = (system, i) => sign * system.values[metric.key][i];
  const gain = (i) => value(b, i) - value(a, i);
  const subset = at("subset").value;
  const keep = {
    all: () => true,
    differ: (i) => a.hypotheses[i] !== b.hypotheses[i],
    a: (i) => gain(i) < 0,
    b: (i) => gain(i) > 0,
    unfinished: (i) => a.cut.has(i),
  }[at("show").value];
  found = [];
  for (let i = 0; i < texts.length; i++) {
    if ((!subset || test.subsets[i] === subset) && words.every((word) => texts[i].includes(word)) && keep(i)) found.push(i);
  }
  const order = { // equal ones stay as in the file
    worst: (i, j) => value(a, i) - value(a, j),
    best: (i, j) => value(a, j) - value(a, i),
    gain: (i, j) => gain(j) - gain(i),
    loss: (i, j) => gain(i) - gain(j),
  }[at("sort").value];
  if (order) found.sort(order);
  page = 0;
  at("status").textContent = `${found.length.toLocaleString("en")} of ${texts.length.toLocaleString("en")} segments of ${test.name}, ${test.systems.length} methods`;
  show();
}

function show() {
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  page = Math.min(Math.max(page, 0), pages - 1);
  at("place").textContent = `page ${page + 1} of ${pages}`;
  at("before").disabled = page === 0;
  at("after").disabled = page === pages - 1;
  const words = wanted();
  at("segments").replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map((i) => segment(i, words)));
}

function segment(i, words) {
  const a = Number(at("a").value), b = Number(at("b").value);
  const metric = test.metrics.find((one) => one.key === at("metric").value);
  const inContext = ["all", "context"].includes(at("where").value);
  const inReferences = ["all", "references"].includes(at("where").value);
  const inOutputs = ["all", "hypotheses"].includes(at("where").value);
  const compared = a === b ? [null, null] : differences(test.systems[a].hypotheses[i], test.systems[b].hypotheses[i]);
  const order = [...new Set([a, b, ...test.systems.keys()])].filter((k) => k === a || k === b || !test.hidden.has(k));
  const outputs = element("dl", { class: "outputs" });
  for (const k of order) {
    const system = test.systems[k];
    const text = system.hypotheses[i];
    const role = k === a ? "A" : k === b ? "B" : null;
    const dd = element("dd", { class: "text", dir: "auto" });
    const parts = role === "A" ? compared[0] : role === "B" ? compared[1] : null;
    if (!text.trim()) dd.append(element("span", { class: "empty" }, "(empty)"));
    else if (parts) {
      for (const [changed, part] of parts) {
        const kept = part.trimEnd();
        const shown = marked(kept, inOutputs ? words : []);
        dd.append(...(changed ? [element(role === "A" ? "del" : "ins", {}, ...shown)] : shown), part.slice(kept.length));
      }
    }
    else dd.append(...marked(text, inOutputs ? words : []));
    if (system.cut.has(i)) dd.append(" ", element("span", { class: "cut" }, "(cut at the greatest length)"));
    outputs.append(element("div", {},
      element("dt", {}, role && element("span", { class: "role" }, role), element("a", { href: "#run:" + system.run }, system.label)),
      dd,
      element("dd", { class: "value" }, metric ? system.values[metric.key][i].toFixed(metric.decimals) : "")));
  }
  return element("article", { "aria-label": "Segment " + (i + 1) },
    element("header", {}, element("h3", {}, "Segment " + (i + 1)), test.subsets && test.subsets[i] ? element("span", {}, test.subsets[i]) : null),
    element("div", { class: "segment" },
      element("div", { class: "given" },
        element("p", { class: "context" }, ...marked(test.contexts[i], inContext ? words : [])),
        element("ol", { "aria-label": "References" }, ...test.references[i].map((text) => element("li", { dir: "auto" }, ...marked(text, inReferences ? words : []))))),
      outputs));
}

function marked(text, words) {
  // Places are those of the text in small letters, which has other lengths in a few scripts: then nothing is marked.
  const small = text.toLowerCase();
  if (!words.length || small.length !== text.length) return [text];
  const parts = [];
  for (let from = 0; from < text.length;) {
    let next = -1, length = 0;
    for (const word of words) {
      const place = small.indexOf(word, from);
      if (place >= 0 && (next < 0 || place < next || (place === next && word.length > length))) [next, length] = [place, word.length];
    }
    if (next < 0) { parts.push(text.slice(from)); break; }
    if (next > from) parts.push(text.slice(from, next));
    parts.push(element("mark", {}, text.slice(next, next + length)));
    from = next + length;
  }
  return parts;
}

// Words of each text that the other lacks, by a longest common subsequence: [[changed, text], ...] for both.
function differences(one, other) {
  const words = (text) => text.match(/^\s+|\S+\s*/g) || [];
  const a = words(one), b = words(other);
  const key = (word) => word.trim();
  const width = b.length + 1;
  const longest = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      longest[i * width + j] = key(a[i]) === key(b[j])
        ? longest[(i + 1) * width + j + 1] + 1
        : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  const parts = [[], []];
  const add = (side, changed, word) => {
    const last = parts[side].at(-1);
    if (last && last[0] === changed) last[1] += word;
    else parts[side].push([changed, word]);
  };
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && key(a[i]) === key(b[j])) { add(0, false, a[i++]); add(1, false, b[j++]); }
    else if (j === b.length || (i < a.length && longest[(i + 1) * width + j] >= longest[i * width + j + 1])) add(0, true, a[i++]);
    else add(1, true, b[j++]);
  }
  return parts;
}

function turn(by) {
  page += by;
  show();
  at("status").scrollIntoView();
}

if (at("texts")) {
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("set").addEventListener("change", choose);
  at("search").addEventListener("input", update);
  for (const id of ["where", "subset", "a", "b", "metric", "show", "sort"]) at(id).addEventListener("change", update);
  at("before").addEventListener("click", () => turn(-1));
  at("after").addEventListener("click", () => turn(1));
  addEventListener("keydown", (event) => {
    const busy = event.ctrlKey || event.metaKey || event.altKey || dialog.open || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (busy) return;
    if (event.key === "/") { event.preventDefault(); at("search").focus(); at("search").scrollIntoView({ block: "center" }); }
    if (event.key === "n" && !at("after").disabled) turn(1);
    if (event.key === "p" && !at("before").disabled) turn(-1);
  });
  choose();
}
