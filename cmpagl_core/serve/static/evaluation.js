// How well the index finds its own images by their captions, beside another index if one is chosen.

import { askJson, Trouble } from "./api.js";
import { byId, element, number, withProgress } from "./elements.js";

const setup = JSON.parse(document.body.dataset.setup);
const chosen = () => new URLSearchParams(location.search);

function options(select, names, value) {
  select.replaceChildren(...names.map(([name, words]) => element("option", { value: name, selected: name === value }, words)));
}

byId("against-label").hidden = setup.others.length === 0;
options(byId("against"), [["", "nothing"], ...setup.others.map((name) => [name, name])], chosen().get("against") ?? "");
byId("choice").addEventListener("change", () => {
  const asked = new URLSearchParams({ split: byId("split").value });
  if (byId("against").value) asked.set("against", byId("against").value);
  history.pushState(null, "", `?${asked}`);
  show();
});
byId("choice").addEventListener("submit", (event) => event.preventDefault());
addEventListener("popstate", () => { byId("against").value = chosen().get("against") ?? ""; show(); });

async function show() {
  byId("trouble").hidden = true;
  try {
    const found = await withProgress(askJson(`/api/evaluation?${chosen()}`));
    options(byId("split"), found.splits.map((name) => [name, name]), found.split);
    byId("found").replaceChildren(...[recalls(found), scenes(found), worst(found)].filter(Boolean));
  } catch (error) {
    byId("found").replaceChildren();
    const known = error instanceof Trouble;
    byId("trouble").replaceChildren(element("p.said", {}, error.message), element("p", {}, known ? error.hint : "Load the page again."));
    byId("trouble").hidden = false;
  }
}

const percent = (value) => value.toFixed(1);

function cell(value, against) {
  const difference = against === undefined ? null : value - against;
  const sign = difference > 0 ? "+" : "−";
  const words = difference === null || Math.abs(difference) < 0.05 ? null : element(`small.${difference > 0 ? "up" : "down"}`, {}, ` ${sign}${Math.abs(difference).toFixed(1)}`);
  return element("td", {}, percent(value), words);
}

function table(caption, heads, rows) {
  const head = element("tr", {}, ...heads.map((name) => element("th", { scope: "col" }, name)));
  return element("section.card-box", { "aria-label": caption }, element("h2", {}, caption),
    element("div.wide", { tabindex: "0", role: "group", "aria-label": `${caption}, table` },
      element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows))));
}

function recalls(found) {
  const [first] = found.runs;
  const rows = found.runs.map((run, place) => {
    const [t2i, i2t] = [run.t2i, run.i2t];
    const beside = place ? first : undefined;
    return element("tr", {},
      element("th", { scope: "row" }, run.index, element("small", {}, ` ${run.model}`)),
      ...["r1", "r5", "r10"].map((key) => cell(t2i[key], beside?.t2i[key])),
      ...["r1", "r5", "r10"].map((key) => cell(i2t[key], beside?.i2t[key])),
      cell(run.mr, beside?.mr));
  });
  const title = `Recalls in percent: ${number(found.images)} images, ${number(found.captions)} captions of ${found.split}`;
  return table(title, ["Index", "Text to image R@1", "R@5", "R@10", "Image to text R@1", "R@5", "R@10", "mR"], rows);
}

function scenes(found) {
  if (!found.scenes.length) return null;
  const bar = (value) => {
    const filled = element("i");
    filled.style.width = `${value}%`;
    return element("span.share", { "aria-hidden": "true" }, filled);
  };
  const rows = found.scenes.map((row) => element("tr", {},
    element("th", { scope: "row" }, row.scene),
    element("td", {}, String(row.images)),
    ...row.runs.flatMap((run, place) => [cell(run.mr, place ? row.runs[0].mr : undefined), element("td.bar-cell", {}, bar(run.mr))])));
  const heads = found.runs.flatMap((run) => [`mR ${found.runs.length > 1 ? run.index : ""}`, ""]);
  const made = table("Scenes, the hardest first", ["Scene", "Images", ...heads], rows);
  for (const head of made.querySelectorAll("thead th")) if (!head.textContent) head.replaceWith(element("td"));
  return made;
}

function worst(found) {
  if (!found.worst.length) return null;
  const image = (row, kind) => {
    const item = found.items[row];
    return element(`img.${kind}`, { src: `${item.thumbnail}?size=160`, alt: kind === "own" ? "its own image" : item.captions[0] ?? item.image_id, title: item.image_id, loading: "lazy", width: 84, height: 84 });
  };
  const cards = found.worst.map((one) => element("article", {},
    element("p", {}, element("a", { href: `/?${new URLSearchParams({ q: one.caption })}` }, one.caption)),
    element("div.own-row", {}, image(one.own, "own"), element("dl", {},
      ...one.runs.flatMap((run, place) => [element("dt", {}, found.runs[place].index), element("dd", {}, `rank ${number(Math.round(run.rank))}`)]))),
    ...one.runs.map((run, place) => element("div.found-row", { role: "group", "aria-label": `Found by ${found.runs[place].index}` }, ...run.found.map((row) => image(row, row === one.own ? "own" : "other"))))));
  return element("section", { "aria-label": "Worst queries" },
    element("h2", {}, "Worst queries"), element("p.soft", {}, "The captions whose own image (outlined) comes last, and the images that come first instead."),
    element("div.queries", {}, ...cards));
}

show();
