"use strict";
const get = id => document.getElementById(id);
const LIMITS = JSON.parse(document.body.dataset.limits);
const KINDS = [...document.querySelectorAll("[name=find]")].map(input => input.value);
const START = {text: "", like: null, terms: [], weight: 1, find: KINDS[0], top: LIMITS.first};
let state = structuredClone(START);
let asked = 0; // answers that come late are for a query that is no longer there

function sentence(text) {
  get("error").textContent = text;
  get("error").hidden = !text;
}

async function answer(path, options) {
  let response;
  try {
    response = await fetch(path, {method: "POST", ...options});
  } catch {
    throw new Error("The server does not answer: is vlp search still running?");
  }
  const content = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(content.error || `The server answered with ${response.status}.`);
  return content;
}

function request() {
  const {like} = state;
  const base = like === null ? {text: state.text.trim() || null}
    : like.token ? {upload: like.token} : {row: {kind: like.kind, number: like.number}};
  const terms = sign => state.terms.filter(term => term.sign === sign).map(term => term.text);
  return {...base, plus: terms("+"), minus: terms("-"), weight: state.weight, find: state.find, top: state.top};
}

async function search({remember = true, focus = false} = {}) {
  sentence("");
  show();
  const number = ++asked;
  get("results").classList.add("busy");
  try {
    const body = JSON.stringify(request());
    const found = await answer("api/search", {body, headers: {"Content-Type": "application/json"}});
    if (number !== asked) return;
    results(found);
    if (remember) history.pushState(state, "");
    if (focus) get("status").focus();
  } catch (error) {
    if (number === asked) sentence(error.message);
  } finally {
    if (number === asked) get("results").classList.remove("busy");
  }
}

/* What is asked for, as the form shows it. */
function show() {
  const {like} = state;
  get("like").hidden = like === null;
  get("text").hidden = like !== null;
  if (like !== null) {
    const image = get("like").querySelector("img");
    image.src = like.url;
    image.onload = () => image.classList.toggle("tiny", image.naturalWidth <= LIMITS.tiny);
    get("like").querySelector("span").textContent = like.name;
  }
  if (get("text").value.trim() !== state.text) get("text").value = state.text;
  get("chips").replaceChildren(...state.terms.map(chip));
  get("strength").hidden = !state.terms.length || !(like || state.text);
  get("weight").value = state.weight;
  get("strength").querySelector("output").textContent = state.weight.toFixed(1);
  for (const input of document.querySelectorAll("[name=find]")) input.checked = input.value === state.find;
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function chip(term, place) {
  const item = element("li", term.sign === "+" ? "plus" : "minus", `${term.sign === "+" ? "+" : "−"} ${term.text}`);
  const remove = element("button", "remove", "×");
  remove.type = "button";
  remove.setAttribute("aria-label", `Remove ${term.sign === "+" ? "plus" : "minus"} ${term.text}`);
  remove.onclick = () => {
    state.terms.splice(place, 1);
    search();
    get("term").focus();
  };
  item.append(remove);
  return item;
}

function results(found) {
  const list = get("results");
  list.className = `as-${found.find}`;
  list.replaceChildren(...found.results.map(one => found.find === "pictures" ? card(one) : line(one)));
  const total = `${found.total.toLocaleString("en")} ${found.find}`;
  const said = found.sample ? `Some of the ${total}: click one to search by it`
    : `${found.results.length} of ${total} in ${found.milliseconds.toFixed(found.milliseconds < 10 ? 1 : 0)} ms`;
  get("status").textContent = [said, ...found.notes].join(" · ");
  get("more").hidden = found.sample || found.results.length < state.top || state.top >= LIMITS.most;
}

function card(one) {
  const button = element("button", "hit");
  button.type = "button";
  const image = element("img");
  image.loading = "lazy";
  image.alt = one.text || `picture ${one.key}`;
  image.onload = () => image.classList.toggle("tiny", image.naturalWidth <= LIMITS.tiny);
  image.onerror = () => image.replaceWith(element("div", "gone", "no longer there"));
  image.src = `picture/${one.kind}/${one.number}`;
  button.append(image, element("span", "", one.text || one.key));
  button.append(element("span", "score", one.score === null ? "" : one.score.toFixed(3)));
  button.title = one.key;
  button.onclick = () => {
    state = {...state, text: "", top: LIMITS.first, like: {...one, name: one.text || one.key, url: image.src}};
    search({focus: true});
    window.scrollTo({top: 0});
  };
  const item = element("li");
  item.append(button);
  return item;
}

function line(one) {
  const button = element("button", "told");
  button.type = "button";
  button.title = "Search by this text";
  button.append(element("span", "score", one.score === null ? "" : one.score.toFixed(3)), element("span", "", one.text));
  button.onclick = () => {
    const find = KINDS.includes("pictures") ? "pictures" : "texts";
    state = {...state, like: null, text: one.text.slice(0, LIMITS.text), find, top: LIMITS.first};
    search({focus: true});
    window.scrollTo({top: 0});
  };
  const item = element("li");
  item.append(button);
  return item;
}

async function upload(file) {
  sentence("");
  if (file.size > LIMITS.bytes) {
    sentence(`${file.name} has more than ${LIMITS.bytes >> 20} MB: take a smaller picture.`);
    return;
  }
  try {
    const {token} = await answer("api/upload", {body: file});
    state = {...state, text: "", top: LIMITS.first, like: {token, name: file.name, url: URL.createObjectURL(file)}};
    await search();
  } catch (error) {
    sentence(error.message);
  }
}

function addTerm(sign) {
  const typed = get("term").value.trim();
  const [, own, text] = typed.match(/^([+−-]?)\s*(.*)$/s);
  if (!text) {
    get("term").focus();
    return;
  }
  state.terms.push({sign: own ? (own === "+" ? "+" : "-") : sign, text});
  get("term").value = "";
  search();
}

get("ask").onsubmit = event => {
  event.preventDefault();
  state.text = state.like ? "" : get("text").value.trim();
  state.top = LIMITS.first;
  search();
};
get("like").querySelector(".remove").onclick = () => {
  state.like = null;
  search();
  get("text").focus();
};
get("plus").onclick = () => addTerm("+");
get("minus").onclick = () => addTerm("-");
get("term").onkeydown = event => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  addTerm("+");
};
get("weight").onchange = event => {
  state.weight = Number(event.target.value);
  search();
};
get("weight").oninput = event => {
  get("strength").querySelector("output").textContent = Number(event.target.value).toFixed(1);
};
for (const input of document.querySelectorAll("[name=find]")) {
  input.onchange = () => {
    state.find = input.value;
    if (!state.like) state.text = get("text").value.trim();
    search();
  };
}
get("more").onclick = () => {
  state.top = Math.min(4 * state.top, LIMITS.most);
  search({remember: false});
};
get("choose").onclick = () => get("file").click();
get("file").onchange = event => {
  if (event.target.files.length) upload(event.target.files[0]);
  event.target.value = "";
};
const carriesFile = event => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
addEventListener("dragover", event => {
  if (!carriesFile(event)) return;
  event.preventDefault();
  event.dataTransfer.dropEffect = "copy";
  get("drop").hidden = false;
});
addEventListener("dragleave", event => {
  if (event.relatedTarget === null) get("drop").hidden = true;
});
addEventListener("drop", event => {
  get("drop").hidden = true;
  if (!carriesFile(event)) return;
  event.preventDefault();
  if (event.dataTransfer.files.length) upload(event.dataTransfer.files[0]);
});
addEventListener("popstate", event => {
  state = event.state ?? structuredClone(START);
  search({remember: false});
});
history.replaceState(state, "");
search({remember: false});
