"use strict";

const $ = (id) => document.getElementById(id);
const make = (tag, name, text) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
};
const known = (value) => typeof value === "number" && Number.isFinite(value);
const number = (value, digits = 0) =>
  known(value) ? value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits }) : "–";
const bytes = (value) => {
  if (!known(value)) return "–";
  const names = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < names.length - 1) { value /= 1024; at += 1; }
  return `${number(value, at ? 1 : 0)} ${names[at]}`;
};

// chat -----------------------------------------------------------------------------------------------------------

let messages = [];
let asking = null;

// code blocks, inline code, bold and lists; everything is text, nothing of the model becomes markup
function inline(parent, text) {
  for (const part of text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/)) {
    if (part.length > 2 && part.startsWith("`") && part.endsWith("`")) parent.append(make("code", "", part.slice(1, -1)));
    else if (part.length > 4 && part.startsWith("**") && part.endsWith("**")) parent.append(make("strong", "", part.slice(2, -2)));
    else if (part) parent.append(part);
  }
}

function show(parent, text) {
  const nodes = [];
  text.split("```").forEach((block, index) => {
    if (index % 2) {
      nodes.push(make("pre", "", block.replace(/^[^\n]*\n/, "")));
      return;
    }
    for (const paragraph of block.split(/\n{2,}/)) {
      if (!paragraph.trim()) continue;
      const lines = paragraph.trim().split("\n");
      if (lines.every((line) => /^\s*[-*] /.test(line))) {
        const list = make("ul");
        for (const line of lines) {
          const item = make("li");
          inline(item, line.replace(/^\s*[-*] /, ""));
          list.append(item);
        }
        nodes.push(list);
      } else {
        const node = make("p");
        inline(node, paragraph.trim());
        nodes.push(node);
      }
    }
  });
  parent.replaceChildren(...nodes);
}

function turn(role) {
  $("empty").hidden = true;
  const node = make("div", `turn ${role}`);
  node.append(make("div", "who", role === "user" ? "You" : "Model"), make("div", "text"), make("div", "meta"));
  $("log").append(node);
  $("log").scrollTop = $("log").scrollHeight;
  return { text: node.children[1], meta: node.children[2] };
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ") || part === "data: [DONE]") continue;
      yield JSON.parse(part.slice(6));
    }
  }
}

async function failureOf(response) {
  try { return (await response.json()).error.message; } catch { return `the server answered ${response.status}`; }
}

async function ask(text) {
  const mine = turn("user");
  mine.text.textContent = text;
  messages.push({ role: "user", content: text });
  const answer = turn("assistant");
  const system = $("system").value.trim();
  const begin = performance.now();
  let first = null, whole = "", usage = null, ended = "";
  asking = new AbortController();
  busy(true);
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: { "Content-Type": "application/json" }, signal: asking.signal,
      body: JSON.stringify({
        messages: system ? [{ role: "system", content: system }, ...messages] : messages, stream: true,
        stream_options: { include_usage: true }, temperature: Number($("temperature").value) || 0,
        max_tokens: Math.max(1, Math.floor(Number($("most").value)) || 512),
      }),
    });
    if (!response.ok) throw new Error(await failureOf(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) usage = event.usage;
      const choice = event.choices && event.choices[0];
      if (!choice) continue;
      if (choice.delta.content) {
        first = first ?? performance.now();
        whole += choice.delta.content;
        const log = $("log"), follow = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
        show(answer.text, whole);
        if (follow) log.scrollTop = log.scrollHeight;
      }
      if (choice.finish_reason === "length") ended = "cut at the most tokens";
    }
  } catch (error) {
    if (error.name === "AbortError") ended = "stopped";
    else answer.text.append(make("p", "fault", error.message));
  }
  const seconds = (performance.now() - (first ?? begin)) / 1000;
  const notes = [];
  if (usage) {
    notes.push(`${number(usage.completion_tokens)} tokens`);
    if (usage.completion_tokens > 1 && seconds > 0) notes.push(`${number((usage.completion_tokens - 1) / seconds, 1)} tokens/s`);
    notes.push(`prompt ${number(usage.prompt_tokens)}, of them ${number(usage.prompt_tokens_details.cached_tokens)} cached`);
  }
  if (first !== null) notes.push(`first after ${number(first - begin)} ms`);
  if (ended) notes.push(ended);
  answer.meta.textContent = notes.join(" · ");
  if (whole) messages.push({ role: "assistant", content: whole });
  else messages.pop();
  asking = null;
  busy(false);
}

function busy(on) {
  $("send").disabled = on;
  $("stop").disabled = !on;
  if (!on) $("prompt").focus();
}

function send() {
  const text = $("prompt").value.trim();
  if (!text || asking) return;
  $("prompt").value = "";
  ask(text);
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && asking) asking.abort(); });
$("stop").addEventListener("click", () => asking && asking.abort());
$("fresh").addEventListener("click", () => {
  if (asking) asking.abort();
  messages = [];
  for (const node of document.querySelectorAll(".turn")) node.remove();
  $("empty").hidden = false;
  $("prompt").focus();
});

// the server's state ---------------------------------------------------------------------------------------------

const speeds = [];
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function surface(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = Number(canvas.dataset.height || canvas.getAttribute("height"));
  canvas.dataset.height = height;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  return { pen, width, height };
}

function drawMap(text) {
  const { pen, width, height } = surface($("map"));
  const cells = Uint8Array.from(atob(text || ""), (letter) => letter.charCodeAt(0));
  if (!cells.length) return;
  let size = Math.floor(Math.sqrt((width * height) / cells.length)) || 1;
  while (size > 1 && Math.ceil(cells.length / Math.floor(width / size)) * size > height) size -= 1;
  const columns = Math.max(1, Math.floor(width / size)), gap = size > 4 ? 1 : 0;
  const paints = ["--free", "--cached", "--held", "--shared"].map(colour);
  cells.forEach((state, at) => {
    pen.fillStyle = paints[state] || paints[0];
    pen.fillRect((at % columns) * size, Math.floor(at / columns) * size, size - gap, size - gap);
  });
}

function drawSpeed() {
  const { pen, width, height } = surface($("speed"));
  const most = Math.max(...speeds, 1);
  pen.strokeStyle = colour("--held");
  pen.lineWidth = 1.5;
  pen.beginPath();
  speeds.forEach((speed, at) => {
    const x = (at / 119) * width, y = height - 3 - (speed / most) * (height - 8);
    if (at) pen.lineTo(x, y); else pen.moveTo(x, y);
  });
  pen.stroke();
  pen.fillStyle = colour("--dim");
  pen.font = "11px system-ui, sans-serif";
  pen.textAlign = "right";
  pen.fillText(`at most ${number(most)} tokens/s`, width, 11);
}

function list(parent, rows) {
  parent.replaceChildren(...rows.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]));
}

function tested(result) {
  if (!result) return "–";
  return known(result.kl_mean) ? `${result.status}, KL ${number(result.kl_mean, 4)}` : `${result.status}`;
}

function showLive(live) {
  const pages = live.pages || {};
  for (const name of ["free", "cached", "held", "shared"]) $(name).textContent = number(pages[name]);
  drawMap(live.map);
  const longest = live.model ? live.model.max_model_len : 1;
  $("sequences").replaceChildren(...live.sequences.slice(0, 12).map((one) => {
    const row = make("li"), bar = make("span"), tokens = one.prompt_tokens + one.output_tokens;
    bar.style.backgroundSize = `${Math.min(100, Math.max(1, (100 * tokens) / longest))}% 100%`;
    row.append(make("b", "", `${number(tokens)} tok`), bar);
    return row;
  }));
  speeds.push(known(live.tokens_per_second) ? live.tokens_per_second : 0);
  if (speeds.length > 120) speeds.shift();
  drawSpeed();
  const hits = live.prefix_queries ? (100 * live.prefix_hits) / live.prefix_queries : NaN;
  list($("now"), [
    ["running", `${number(live.running)} (waiting ${number(live.waiting)})`],
    ["generated", `${number(live.tokens_per_second, 1)} tokens/s`],
    ["prompts", `${number(live.prompt_tokens_per_second, 1)} tokens/s`],
    ["first token, median", `${number(live.time_to_first_token_ms)} ms`],
    ["between tokens, median", `${number(live.inter_token_latency_ms, 1)} ms`],
    ["prefix found", known(hits) ? `${number(hits)} %` : "–"],
    ["preemptions", number(live.preemptions)],
  ]);
  const { model, kv_cache: cache } = live;
  if (!model || !cache) return;
  list($("facts"), [
    ["model", model.id], ["on", `${model.device}, ${model.dtype}`], ["longest", `${number(model.max_model_len)} tokens`],
    ["cache", cache.dtype], ["self-test", tested(cache.self_test)],
    ["a token", bytes(cache.bytes_per_token)], ["in bf16", bytes(cache.bytes_per_token_bf16)],
    ["pool", bytes(cache.allocated_bytes)], ["holds", `${number(cache.capacity_tokens)} tokens`],
    ["in bf16", `${number(cache.capacity_tokens_bf16)} tokens`],
    ["sequences that fit", number(cache.sequences_that_fit)], ["in bf16", number(cache.sequences_that_fit_bf16)],
  ]);
}

const STATES = { ready: "ready", loading: "the engine is loading", restarting: "the engine has died and is being restarted", stopping: "the server is shutting down", failed: "the engine could not start" };

async function look() {
  let said = "", bad = true;
  try {
    const response = await fetch("live", { signal: AbortSignal.timeout(5000) });
    if (!response.ok) throw new Error(await failureOf(response));
    const live = await response.json();
    said = STATES[live.state] || live.state;
    bad = !["ready", "loading"].includes(live.state);
    showLive(live);
  } catch (error) {
    said = error.name === "TypeError" || error.name === "TimeoutError" ? "the server cannot be reached; trying again" : error.message;
  }
  if ($("state").textContent !== said) $("state").textContent = said;
  $("state").classList.toggle("bad", bad);
  setTimeout(look, document.hidden ? 3000 : 500);
}

look();
$("prompt").focus();
