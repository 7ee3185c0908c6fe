// Asks for what the page shows, again and again while somebody looks, and puts it there as text.
"use strict";

const AGAIN_MS = 5000; // after a failure
const ANSWER_MS = 20000;
const OLD_S = 10; // what is older than this and three looks is said to be old
const ENDED = "No answer: the dashboard has ended, or the connection to it is cut.";
const REPLACED = "This dashboard has ended. Open the URL that the new one printed.";
const at = (id) => document.getElementById(id);
let timer = 0, shownAt = null, drawn = [];

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function child(parent, index, kind) {
  return parent.children[index] ?? parent.appendChild(document.createElement(kind));
}

function shorten(parent, length) {
  while (parent.children.length > length) parent.lastElementChild.remove();
}

function fillCell(cell, text, href) {
  let link = cell.querySelector("a");
  if (!href) return put(cell, text);
  if (!link) {
    cell.textContent = "";
    link = cell.appendChild(document.createElement("a"));
  }
  if (link.getAttribute("href") !== href) link.setAttribute("href", href);
  link.title = text; // a long name is cut
  put(link, text);
}

function fillRow(line, row, table) {
  row.cells.forEach((text, column) => {
    const cell = child(line, column, "td");
    cell.classList.toggle("n", table.figures.includes(column));
    if (column === 1 && !table.figures.includes(0)) cell.dataset.state = text.split(" ")[0];
    fillCell(cell, text, column === 0 ? row.href : null);
  });
}

function fillTable(section, table) {
  const heading = child(section, 0, "h2");
  if (!heading.children.length) {
    heading.append(document.createElement("span"), document.createElement("span"));
    heading.children[1].className = "dim";
  }
  put(heading.children[0], table.title);
  put(heading.children[1], table.note);
  const wide = child(section, 1, "div");
  wide.className = "wide";
  const grid = child(wide, 0, "table");
  grid.hidden = !table.rows.length;
  const head = child(child(grid, 0, "thead"), 0, "tr");
  table.columns.forEach((name, column) => {
    const cell = child(head, column, "th");
    cell.classList.toggle("n", table.figures.includes(column));
    put(cell, name);
  });
  const body = child(grid, 1, "tbody");
  table.rows.forEach((row, index) => fillRow(child(body, index, "tr"), row, table));
  shorten(body, table.rows.length);
}

function fillTables(place, tables) {
  tables.forEach((table, index) => fillTable(child(place, index, "section"), table));
  shorten(place, tables.length);
}

function draw(charts) {
  charts.forEach((html, index) => {
    const holder = child(at("charts"), index, "div");
    if (drawn[index] === html) return;
    const figure = new DOMParser().parseFromString(html, "text/html").body;
    holder.replaceChildren(...figure.childNodes);
  });
  shorten(at("charts"), charts.length);
  drawn = charts;
}

function show(page) {
  document.title = `${page.title} · domyn-swarm`;
  put(at("title"), page.title);
  page.lines.forEach((line, index) => put(child(at("lines"), index, "p"), line));
  shorten(at("lines"), page.lines.length);
  page.links.forEach((row, index) => fillCell(child(at("links"), index, "span"), row.cells[0], row.href));
  shorten(at("links"), page.links.length);
  fillTables(at("before"), page.tables.slice(0, page.charts.length ? 1 : 2));
  draw(page.charts);
  fillTables(at("after"), page.tables.slice(page.charts.length ? 1 : 2));
}

function say(problem) {
  const known = shownAt ? ` What is shown was known at ${shownAt.toLocaleString()}.` : "";
  put(at("problem"), problem ? problem + known : "");
  at("problem").hidden = !problem;
  document.body.classList.toggle("old", Boolean(problem));
}

function take(answer) {
  put(at("notice"), answer.notice);
  if (answer.page) {
    shownAt = new Date(Date.now() - 1000 * answer.age_s); // by this machine's clock
    put(at("as-of"), `as of ${shownAt.toLocaleTimeString()}`);
    show(answer.page);
  }
  const old = answer.age_s > OLD_S + 3 * answer.every_s;
  if (answer.gone && !answer.page) put(at("title"), "Not found");
  say(answer.problem ?? (old ? "The last look is not back yet: what is asked answers slowly." : ""));
}

async function look() {
  clearTimeout(timer);
  if (document.hidden) return; // it continues when the page is visible again
  let next = AGAIN_MS;
  try {
    const signal = AbortSignal.timeout(ANSWER_MS);
    const reply = await fetch(`/pages${location.pathname}`, { signal });
    if (reply.status === 401) {
      say(REPLACED);
    } else {
      const answer = await reply.json();
      take(answer);
      next = 1000 * answer.every_s;
    }
  } catch {
    say(ENDED);
  }
  clearTimeout(timer);
  timer = setTimeout(look, next);
}

document.addEventListener("visibilitychange", look);
look();
